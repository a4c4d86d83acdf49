"""A stranger's chat template on a short conversation, in a process that may take little time and memory."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

SECONDS = 5  # real templates take milliseconds
MEMORY = 2**30  # beyond what the process has
LONGEST = 1_000_000  # characters

CONVERSATION = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
CONVERSATION += [{"role": "user", "content": "Why?"}]


def check_modest(render: Callable[[list[dict]], str]) -> None:
    """Tries a template, whose own errors are left to the conversations that it is used for.

    Args:
        render: writes messages by it.

    Raises:
        ValueError: it takes more than `SECONDS` or `MEMORY`, or writes more than `LONGEST` characters.
    """
    child = os.fork()
    if child == 0:
        status = 0
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(4 * SECONDS)  # should it wait for another thread's lock, which nobody in here gives back
            _limit()
            status = int(len(render(CONVERSATION)) > LONGEST)
        except (MemoryError, OverflowError):
            status = 1
        except BaseException:
            pass
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise ValueError(
            f"the chat template is refused: of three short messages it makes more than {LONGEST:,} characters, or it "
            f"takes more than {SECONDS} s or {MEMORY / 1e9:.0f} GB; set another as tokenizer.chat_template"
        )


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    statm = Path("/proc/self/statm")  # absent on macOS
    if statm.is_file():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
