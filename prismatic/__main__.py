"""`python -m prismatic export RUN OUT`: a run as a plain Hugging Face folder, LoRA adapters merged."""

import argparse
from pathlib import Path

from prismatic.models.load import load
from prismatic.training.checkpoint import save_model


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m prismatic", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export", help="write a run's model as a plain save_pretrained folder, adapters merged"
    )
    export.add_argument("run", help="run folder or checkpoint")
    export.add_argument("out", type=Path, help="folder to write; must not exist")
    arguments = parser.parse_args()
    try:
        print(f"wrote {save_model(*load(arguments.run), arguments.out)}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
