"""What one process does for all of them."""

from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list


def on_main(accelerator, act: Callable[[], Any]) -> Any:
    """Has the main process act, and returns what it returned to all processes, which all call this.

    Raises:
        ValueError: on all processes, where acting raised it or an OSError: else the others would wait.
    """
    given, problem = None, None
    if accelerator.is_main_process:
        try:
            given = act()
        except (ValueError, OSError) as error:
            problem = str(error)
    given, problem = broadcast_object_list([given, problem])
    if problem:
        raise ValueError(problem)
    return given
