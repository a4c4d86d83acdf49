"""Step checkpoints while training continues: staged, written and committed in a thread with its own process group."""

import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint._state_dict_stager import StateDictStager  # torch 2.11's public one stages once
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from prismatic.checkpoints import step as state
from prismatic.checkpoints.lock import at_end
from prismatic.checkpoints.run_folder import slower
from prismatic.data.fingerprints import check_same
from prismatic.training.sharding import check_finite
from vision_backbones.files import describe, put_folder, read_json, write_json, write_text

RESUMABLE = "resumable.json"  # a run that was asked to stop, stopped, and can resume


class StopSignals:
    """Notes that this process was asked to stop, by SIGTERM or SIGINT (Ctrl-C); a second SIGINT stops it at once."""

    def __init__(self, run_dir: Path, accelerator):
        self.run_dir, self.accelerator, self.asked = run_dir, accelerator, False
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self._ask) for number in numbers}
        at_end(self.close)
        if accelerator.is_main_process:
            (run_dir / RESUMABLE).unlink(missing_ok=True)

    def _ask(self, number: int, frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def should_stop(self) -> bool:
        """Whether this process was asked to stop."""
        return self.asked

    def stop(self, step: int) -> None:
        """Ends the process with status 0; everything is on disk.

        Raises:
            SystemExit: always.
        """
        self.close()
        if self.accelerator.is_main_process:
            write_json(self.run_dir / RESUMABLE, {"step": step})
            again = f"rerun the same command with --run_id {self.run_dir.name} to resume"
            tqdm.write(f"stopped after step {step} as requested; {again}")
        self.accelerator.end_training()
        raise SystemExit(0)

    def close(self) -> None:
        """Hands the signals back."""
        while self.before:
            signal.signal(*self.before.popitem())


class AsyncCheckpointer:
    """Saves every so many steps, after the last one, and when the process is asked to stop, one save at a time.

    A failed save is reported and training continues; earlier checkpoints stay as they are. `close` it at the end.

    Args:
        run_dir: of the run.
        accelerator: all its processes do the same.
        model: what is trained, without DDP around it.
        optimizer: its optimizer.
        every: steps between saves; None saves only when stopped and after the last step.
        last: the step that training ends with, which is saved in any case.
        keep_last: how many of the newest stay.
        keep_every: steps of which every multiple stays as well.
        metadata: JSON-able, stored with each: what is needed to build the model again.
        log: takes what a save cost.
        timeout_minutes: how long processes wait for one another.
    """

    def __init__(
        self,
        run_dir: Path,
        accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int | None,
        last: int | None = None,
        keep_last: int = 2,
        keep_every: int | None = None,
        metadata: dict | None = None,
        log: Callable[[dict], None] = lambda metrics: None,
        timeout_minutes: float = 30,
    ):
        self.folder, self.run_dir, self.accelerator = run_dir / "checkpoints", run_dir, accelerator
        self.model, self.optimizer, self.metadata, self.log = model, optimizer, metadata or {}, log
        self.every, self.last, self.keep_last, self.keep_every = every, last, keep_last, keep_every
        self.group = None
        if accelerator.num_processes > 1:  # collectives of training must never meet those of a save
            self.group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
        self.stager = StateDictStager(pin_memory=torch.cuda.is_available())
        self.thread, self.saving, self.staged = ThreadPoolExecutor(1), None, threading.Event()
        self.waited = 0.0
        if not self.group:  # an error that leaves the run leaves no save behind; of several, some may wait for ever
            at_end(self.thread.shutdown)
        self.signals = StopSignals(run_dir, accelerator)
        self.should_stop = self.signals.should_stop

    @property
    def hooks(self) -> dict[str, Callable]:
        """What `prismatic.training.loop.fit` calls, by the names of its arguments."""
        return {
            "after_step": self.after_step, "before_update": self.before_update, "should_stop": self.should_stop,
        }  # fmt: skip

    def before_update(self) -> None:
        """Waits until what is being saved was copied: the optimizer is about to change it."""
        if self.saving:
            started = time.perf_counter()
            self.staged.wait()
            self.waited += time.perf_counter() - started

    def after_step(self, step: int, stop: bool = False) -> None:
        """Saves if it is time.

        Raises:
            SystemExit: with status 0, when a process was asked to stop, once everything is on disk.
        """
        if stop or step == self.last or (self.every and step % self.every == 0):
            self.save(step)
        elif self.saving and self.saving.done():
            self._finish()
        if stop:
            self.close()
            self.signals.stop(step)

    def save(self, step: int) -> None:
        """Starts to write the checkpoint of a step, once the one before is written.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        check_finite(self.model, self.accelerator, step, slower(self.run_dir))
        if self.saving:
            self._finish()
        started = time.perf_counter()
        tensors = state.state_tensors(self.model, self.optimizer)
        if self._has_room(step, tensors):
            self.waited = time.perf_counter() - started
            self.staged.clear()
            self.saving = self.thread.submit(self._write, step, tensors, state.random_state())

    def close(self) -> None:
        """Waits for the last save, and hands signals back."""
        if self.saving:
            self._finish()
        self.thread.shutdown()
        self.stager.close()
        self.signals.close()

    def _has_room(self, step: int, tensors: dict[str, torch.Tensor]) -> bool:
        local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors.values()]
        needed = torch.tensor(float(sum(t.nbytes for t in local)), device=self.accelerator.device)
        needed = self.accelerator.reduce(needed, "sum").item()
        free = broadcast_object_list([shutil.disk_usage(self.folder).free])[0]
        if free < needed * 1.02:
            self._say(step, f"it needs {needed / 1e9:.1f} GB, and {self.folder} has {free / 1e9:.1f} GB free")
        return free >= needed * 1.02

    def _say(self, step: int, reason: str) -> None:
        if self.accelerator.is_main_process:
            newest = next(iter(state.step_folders(self.run_dir)), None)
            tqdm.write(
                f"error: the checkpoint of step {step} could not be written: {reason}. Training continues; "
                f"{f'{newest} is intact' if newest else 'no earlier one exists'}. Free disk space, or raise "
                "--save_every_steps."
            )

    def _finish(self) -> None:
        started = time.perf_counter()
        saving, self.saving = self.saving, None
        step, seconds, problem = saving.result()
        self.waited += time.perf_counter() - started
        if problem:
            self._say(step, problem)
        else:
            self.log({"step": step, "checkpoint_seconds": seconds, "checkpoint_wait_seconds": self.waited})

    def _write(self, step: int, tensors: dict[str, torch.Tensor], random_state: dict) -> tuple[int, float, str | None]:
        """Runs in the thread: stages, writes, and commits if every process wrote its part."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        name, started = f"{state.PREFIX}{step:08d}", time.perf_counter()
        tmp_path, files, problem = self.folder / f".{name}.unfinished", {}, None
        try:
            try:
                staged = self.stager.stage(tensors)
            finally:
                self.staged.set()
            if rank == 0:
                shutil.rmtree(tmp_path, ignore_errors=True)
            writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
            dcp.save(staged, storage_writer=writer, process_group=self.group, no_dist=world == 1)
            write_json(tmp_path / f"rank-{rank:05d}.json", random_state)
            mine = [*tmp_path.glob(f"shard-{rank + 1:05d}-*"), tmp_path / f"rank-{rank:05d}.json"]
            files = {path.name: describe(path) for path in mine}
        except BaseException as error:  # torch's is no Exception; whatever it is, the others must hear of it
            problem = _root_cause(error)
        parts = [(files, problem)]
        if self.group:
            parts = [None] * world
            dist.all_gather_object(parts, (files, problem), group=self.group)
        problem = next((reason for _, reason in parts if reason), None)
        if rank == 0 and not problem:
            try:
                self._commit(tmp_path, name, step, {n: metadata for files, _ in parts for n, metadata in files.items()})
            except OSError as error:
                problem = _root_cause(error)
        if rank == 0 and problem:
            shutil.rmtree(tmp_path, ignore_errors=True)
        return step, time.perf_counter() - started, problem

    def _commit(self, tmp_path: Path, name: str, step: int, files: dict) -> None:
        world = self.accelerator.num_processes
        metadata = {"step": step, "processes": world, "versions": state.versions(), **self.metadata}
        write_json(tmp_path / state.STATE_JSON, metadata)
        files[state.STATE_JSON] = describe(tmp_path / state.STATE_JSON)
        write_json(tmp_path / state.MANIFEST, {"files": files})
        put_folder(tmp_path, self.folder / name)
        write_text(self.folder / state.LATEST, name + "\n")
        for old in state.step_folders(self.run_dir)[self.keep_last :]:
            if not (self.keep_every and state.step_of(old) % self.keep_every == 0):
                shutil.rmtree(old)


def _root_cause(error: BaseException) -> str:
    """The innermost reason, on one line: torch wraps what every process met."""
    failures = getattr(error, "failures", None)
    if failures:
        return _root_cause(next(iter(failures.values()))[0])
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def resume(where: str, run_dir: Path, accelerator, model, optimizer, data: dict | None = None) -> int:
    """Puts back the newest whole checkpoint, and returns the steps done; 0 if there is nothing to continue from.

    Args:
        where: "auto" for the newest of this run, "never", or the path of a step checkpoint or a run.
        run_dir: of this run.
        accelerator: all its processes call this; their number may differ from that of the run before.
        model: as it was built; sharded, if it will be.
        optimizer: its optimizer.
        data: fingerprint of the data, which must be that the checkpoint was trained on.

    Raises:
        ValueError: nothing is at the path, all there is is damaged, or it is of another model or other data.
    """
    if where == "never":
        return 0
    place = run_dir if where == "auto" else Path(where)
    folders = [place] if place.name.startswith(state.PREFIX) and place.is_dir() else state.step_folders(place)
    if not folders and where == "auto":
        return 0
    folder = state.newest_whole(folders, accelerator)
    if folder is None:
        reason = "all of its checkpoints are damaged" if folders else "there is no step checkpoint"
        raise ValueError(f"cannot resume from {place}: {reason}; --resume never starts over")
    metadata = state.read_state(folder)
    if data is not None:
        check_same(metadata.get("data") or {"rows": metadata.get("rows")}, data, folder)
    state.load_tensors(folder, model, optimizer)
    if metadata["processes"] == accelerator.num_processes:
        mine = folder / f"rank-{accelerator.process_index:05d}.json"
        state.set_random_state(read_json(mine, "choose another checkpoint", "torch", "numpy", "python"))
    changed = {n: v for n, v in state.versions().items() if metadata["versions"].get(n) != v}
    if changed:
        accelerator.print(f"versions differ from those of the checkpoint, so results may differ: {changed}")
    accelerator.print(f"continues from {folder}, after step {metadata['step']}\n")
    return metadata["step"]
