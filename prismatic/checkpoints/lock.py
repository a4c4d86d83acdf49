"""One writer a folder: a second run that is given a folder at work is told who has it.

Relies on POSIX record locks (`fcntl.lockf`): the kernel drops them with their process, however it ends, and NFS and
Lustre (mounted with `flock`) carry them between machines. Where a file system has none, that is said once.
"""

import functools
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
FLOCK, TYPE = ("qqihh", 3) if sys.platform == "darwin" else ("hhqqi4x", 0)  # C's struct flock; its field l_type
_held: dict[Path, int] = {}
_at_end: list[Callable[[], None]] = []


def hold(folder: Path, remedy: str) -> None:
    """Makes this process the one that writes to a folder, until `releases` or its end; it may ask again.

    Args:
        folder: is made if it is not there.
        remedy: what to do where another process has it.

    Raises:
        ValueError: another process has it: who, and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if path in _held or fcntl is None:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise ValueError(f"{folder} is in use by {holder or 'another process'}: {remedy}") from None
    except OSError as error:
        os.close(descriptor)
        print(f"{folder} cannot be locked ({error}): do not start a second run in it", file=sys.stderr)
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    _held[path] = descriptor


def held(folder: Path) -> bool:
    """Whether a process on any machine is the one that writes to a folder. Asking takes no lock, so nobody is stopped.

    Raises:
        OSError: that cannot be known here: no rights, or a file system without locks.
    """
    path = folder.resolve() / LOCK
    if path in _held:  # closing a descriptor of it would give the lock away
        return True
    if fcntl is None or not path.is_file():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fields = [0] * 5
        fields[TYPE] = fcntl.F_RDLCK
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(FLOCK, *fields))
        return struct.unpack(FLOCK, answer)[TYPE] != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


def at_end(act: Callable[[], None]) -> None:
    """Has `act` called when the function ends that `releases` is around."""
    _at_end.append(act)


def releases(main: Callable) -> Callable:
    """A function at whose end, whatever ends it, the folders that it holds are free again, and `at_end` is done."""

    @functools.wraps(main)
    def alone(*args, **kwargs):
        before, ends = set(_held), len(_at_end)
        try:
            return main(*args, **kwargs)
        finally:
            while len(_at_end) > ends:
                _at_end.pop()()
            for path in _held.keys() - before:
                os.close(_held.pop(path))

    return alone
