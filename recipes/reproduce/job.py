"""Runs one stage: `python -m recipes.reproduce.job FOLDER MODULE ARGUMENTS...`.

A stage has ended when `FOLDER/stage.json` is there, which says what was run and how long it took. A second process that
is given the same stage waits for the first one: a study that was killed may have left it at work.
"""

import json
import runpy
import shlex
import shutil
import sys
import time
from pathlib import Path

DONE = "stage.json"
CONTINUES = ("recipes.evaluate", "prismatic.miniature.make_vit")  # may be started again when they have ended


def main(folder: Path, module: str, arguments: list[str]) -> None:
    """Runs a recipe as its command line would, unless it has run."""
    import fcntl

    from eval.fingerprints import made_by
    from vision_backbones.files import write_json

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / DONE).is_file():
            return
        if module not in CONTINUES and any((folder / name).is_file() for name in ("summary.json", "results.json")):
            shutil.rmtree(folder)  # killed between the recipe's last line and ours
        sys.argv = [module, *arguments]
        started, processor = time.time(), time.process_time()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        command = shlex.join(["python", "-m", module, *arguments])
        spent = {"seconds": time.time() - started, "processor_seconds": time.process_time() - processor}
        folder.mkdir(exist_ok=True)
        write_json(folder / DONE, {"command": command} | spent | made_by())


def read(folder: Path) -> dict | None:
    """What `stage.json` says; None where the stage has not ended."""
    path = folder / DONE
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
