"""`prismatic completion SHELL`: a script that completes job names, and files after them."""

import argparse


def main(argv: list[str] | None = None) -> None:
    """Prints the script; `source <(prismatic completion bash)` in ~/.bashrc turns completion on."""
    try:
        import shtab
    except ImportError:
        raise SystemExit("error: completion needs the package shtab: pip install shtab") from None

    from recipes.cli import JOBS

    command = argparse.ArgumentParser("prismatic completion", description=main.__doc__)
    command.add_argument("program", choices=shtab.SUPPORTED_SHELLS)
    program = command.parse_args(argv).program
    completed = argparse.ArgumentParser("prismatic")
    completed.add_argument("job", choices=list(JOBS))
    completed.add_argument("settings", nargs="*").complete = shtab.FILE
    print(shtab.complete(completed, program))


if __name__ == "__main__":
    main()
