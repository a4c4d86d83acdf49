"""How every recipe is run as a command."""

import gc
import sys
from collections.abc import Callable


def run(main: Callable, parse: Callable) -> None:
    """Calls `main` with the parsed command line; what a user can mend ends it with one line and exit status 1."""
    config = parse(sys.argv[1:])
    gc.disable()  # until `loop.launch`: a quarter of the time that importing the libraries takes
    from safetensors import SafetensorError
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(main)(config)  # so that launchers show the error of the process that failed
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("error: interrupted") from None
