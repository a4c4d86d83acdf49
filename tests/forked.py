"""Commands without the seconds that importing takes: processes forked from one that has everything imported.

`run(["recipes/finetune.py", ...])` is `python recipes/finetune.py ...`: the same arguments (`-m`, `-c` or a script),
environment, working directory and streams, and an interpreter that ends as any other. With `processes=2` it is what
torchrun starts. What launchers and imports do is tested by real commands elsewhere. Workers of pytest-xdist are forked
as well.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS, WORKER = "FORKED_FROM", "FORKED_WORKER"
PRELOADED = (
    "torch._dynamo", "torch.distributed.run", "torch.distributed.checkpoint.hf_storage", "torch.utils.flop_counter",
    "timm", "peft", "sklearn.metrics", "matplotlib.figure", "transformers.models.llama.modeling_llama",
    "prismatic.models.load", "prismatic.data.rows", "prismatic.training.vision", "prismatic.checkpoints.writer",
    "prismatic.planning.fake_step", "recipes.reproduce.plan", "eval.engine", "eval.report.html_report",
    "recipes.config.images",
)  # fmt: skip
_server = None


class Process:
    """A command that runs; like `subprocess.Popen`. Of several processes, `pids` are in the order of their ranks."""

    def __init__(self, argv, processes=1, cwd=ROOT, env=None, stdin=subprocess.DEVNULL, stdout=None, stderr=None):
        self.args, self.returncode = argv, None
        self._out = stdout or tempfile.TemporaryFile()
        self._err = self._out if stderr is subprocess.STDOUT else stderr or tempfile.TemporaryFile()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(_address())
        about = {"argv": list(map(str, argv)), "processes": processes, "cwd": str(cwd)}
        about["env"] = dict(os.environ if env is None else env)
        if torch := sys.modules.get("torch"):  # sums are then rounded alike
            about["threads"] = torch.get_num_threads()
        if processes == 1 and hasattr(os, "sched_getaffinity"):  # several may take the cores of other workers, too
            about["cores"] = sorted(os.sched_getaffinity(0))
        with open(os.devnull) as nothing:
            given = nothing if stdin == subprocess.DEVNULL else stdin
            socket.send_fds(self._connection, [b"\n"], [file.fileno() for file in (given, self._out, self._err)])
        self._connection.sendall(line(about))
        self._reader = self._connection.makefile("rb")
        self.pids = json.loads(self._reader.readline())

    @property
    def pid(self):
        """Of the first process."""
        return self.pids[0]

    def poll(self):
        """The exit status, None while the command runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = json.loads(self._reader.readline())
        return self.returncode

    def wait(self, timeout=None):
        """The exit status."""
        ends = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > ends:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout, self._text(self._out), self._text(self._err))
            select.select([self._connection], [], [], 1)
        return self.returncode

    def communicate(self, timeout=None):
        """Waits; gives what was written to the two streams."""
        self.wait(timeout)
        return self._text(self._out), "" if self._err is self._out else self._text(self._err)

    def send_signal(self, number):
        """Sends a signal to every process that is left."""
        for pid in self.pids if self.returncode is None else ():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def terminate(self):
        """Asks every process that is left to end."""
        self.send_signal(signal.SIGTERM)

    def _text(self, stream):
        return os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0).decode()


def run(argv, timeout=300, **options) -> subprocess.CompletedProcess:
    """Runs a command to its end."""
    process = Process(argv, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def be_worker(argv: list[str]) -> None:
    """Ends as the worker of pytest-xdist that is forked in its place, with its streams."""
    environment = os.environ | {WORKER: "1", "OMP_NUM_THREADS": "1"}
    worker = Process(argv, env=environment, stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)
    os._exit(worker.wait())


def line(message) -> bytes:
    """A message of the protocol between commands and their server."""
    return json.dumps(message).encode() + b"\n"


def start() -> None:
    """Starts the server of this process and of all that inherit its environment; it ends with this process."""
    global _server
    folder = tempfile.mkdtemp(prefix="forked-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = os.environ[ADDRESS] = f"{folder}/socket"
    with open(f"{folder}/log", "wb") as log:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
        _server = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=log,
                                   stderr=log, cwd=ROOT, env=environment)  # fmt: skip
    atexit.register(_server.stdin.close)


def _address() -> str:
    """Where the server listens, as soon as it does."""
    if ADDRESS not in os.environ:
        start()
    address, ends = os.environ[ADDRESS], time.monotonic() + 120
    while not os.path.exists(address):
        failed = time.monotonic() > ends if _server is None else _server.poll() is not None
        assert not failed, Path(address).with_name("log").read_text()
        time.sleep(0.02)
    return address


def serve(address: str) -> None:
    """Forks what it is asked for, until its input ends; a child returns from here, with its `argv` to run."""
    import importlib

    gc.disable()  # a quarter of the time that importing takes
    for name in PRELOADED:
        importlib.import_module(name)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # compiles a thousand expressions, once a process
    os.fsync = lambda descriptor: None
    gc.collect(), gc.freeze(), gc.enable()  # children would copy every page that their collector writes to
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"{address}.new")
    listening.listen()
    os.rename(f"{address}.new", address)
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing)
    running = []  # connection, pids that run, exit statuses
    while True:
        ready = select.select([sys.stdin, listening, reading], [], [])[0]
        if sys.stdin in ready:
            for _, alive, _ in running:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if reading in ready:
            os.read(reading, 4096)
            running = [command for command in running if not _ended(*command)]
        if listening not in ready:
            continue
        connection = listening.accept()[0]
        streams = socket.recv_fds(connection, 1, 3)[1]
        with connection.makefile("rb") as reader:
            about = json.loads(reader.readline())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in range(about["processes"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have their background jobs ignore it
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                for open_ in (listening, connection, *(c for c, *_ in running)):
                    open_.close()
                os.closerange(3, 1024)
                return _become(about, rank, port)
        for stream in streams:
            os.close(stream)
        connection.sendall(line(pids))
        running.append((connection, pids, []))


def _ended(connection: socket.socket, alive: list[int], statuses: list[int]) -> bool:
    """Whether all of a command's processes have ended; its client is then told. One that fails ends the others."""
    for pid in list(alive):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            continue
        alive.remove(pid)
        statuses.append(os.waitstatus_to_exitcode(status))
        if statuses[-1]:
            for other in alive:
                os.kill(other, signal.SIGTERM)
    if alive:
        return False
    try:
        connection.sendall(line(next((status for status in statuses if status), 0)))
    except BrokenPipeError:  # nobody waits any more
        pass
    connection.close()
    return True


def _become(about: dict, rank: int, port: int) -> list[str]:
    """Makes this process what was asked for, and gives the arguments to run."""
    if "cores" in about:
        os.sched_setaffinity(0, about["cores"])
    os.environ.clear()
    os.environ.update(about["env"] | {ADDRESS: sys.argv[1]})
    if not os.environ.pop(WORKER, None):  # commands measure neither the machine nor their operations
        loop = sys.modules["prismatic.training.loop"]
        loop.matmul_peak, loop.count_flops = lambda accelerator: 1e12, lambda *args: 1e9
    threads = about.get("threads") or os.environ.get("OMP_NUM_THREADS") or len(about.get("cores", [0]))
    sys.modules["torch"].set_num_threads(int(threads))
    if (world := about["processes"]) > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.chdir(about["cwd"])
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    paths = [path for path in about["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    argv = about["argv"]
    first = "" if argv[0] == "-c" else about["cwd"] if argv[0] == "-m" else str(Path(argv[0]).resolve().parent)
    sys.path[:] = [first, *paths, *(path for path in sys.path[1:] if path != str(ROOT))]
    return argv


def execute(argv: list[str]) -> None:
    """Runs `-c CODE`, `-m MODULE` or a script with the arguments after it, as Python's command line does."""
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(argv[1], {"__name__": "__main__", "__builtins__": __builtins__})
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        sys.modules.pop(argv[1], None)
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def end(command) -> None:
    """Calls `command` and ends as an interpreter does, except that it does not take seconds to free every object."""
    status = 0
    try:
        command()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "-u":  # what execnet gives Python
        be_worker(sys.argv[2:])
    arguments = serve(sys.argv[1])
    end(lambda: execute(arguments))
