"""`prismatic serve RUN`: a model behind an OpenAI-compatible HTTP interface, by the server of transformers."""

import sys
from pathlib import Path

HELP = """\
usage: prismatic serve RUN [OPTION ...]

Answer questions about images over HTTP as OpenAI's interface does: /v1/chat/completions (text, images as data URLs or
addresses, streaming), /v1/models, /health. On localhost only, unless --host says otherwise.

  prismatic serve runs/mine --port 8000
  prismatic serve miniature --device cpu

RUN is a run (its newest checkpoint is taken), a model's folder, `miniature` or a Hugging Face id. LoRA runs and step
checkpoints are written as a whole model first (prismatic export). The server is that of transformers, which needs
pip install "transformers[serving]"; its own options follow RUN:
"""


def main(argv: list[str]) -> None:
    """Runs the command line; errors are one line."""
    try:
        from transformers.cli.serve import Serve, is_serve_available
    except ImportError as error:
        raise SystemExit(f"error: {error}: pip install 'transformers[serving]'") from None
    if not argv or "-h" in argv or "--help" in argv:
        print(HELP, flush=True)
        argv = ["MODEL", "--help"]
    elif not is_serve_available():
        raise SystemExit("error: the server needs more packages: pip install 'transformers[serving]'")
    else:
        try:
            argv = [whole_model(argv[0]), *argv[1:]]
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(Serve)
    app(argv, prog_name="prismatic serve")


def whole_model(run: str) -> str:
    """The folder of the whole model that a run or name means, or a Hugging Face id as it is.

    Raises:
        ValueError: there is none, or it has to be written first.
    """
    from prismatic.checkpoints.epoch import latest_checkpoint
    from prismatic.models.load import find_model

    place = find_model(run)
    if place is None:
        if run.startswith("-") or run.count("/") != 1:
            raise ValueError(
                f"no model called {run!r}: give a run, a model's folder or a Hugging Face id before options"
            )
        return run
    folder: Path | None = latest_checkpoint(place) if (place / "checkpoints").is_dir() else place
    if folder is None:
        raise ValueError(f"the run {place} holds no checkpoint yet")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} is no whole model: prismatic export {run} OUT writes one, then serve OUT")
    return str(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
