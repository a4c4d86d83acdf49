"""`prismatic import-reference CHECKPOINT OUT`: a checkpoint of the reference as a plain Hugging Face folder."""

import argparse
import sys
from pathlib import Path

from recipes.config.parsing import unknown
from recipes.config.presets import read_presets

HELP = """\
Write a checkpoint of the reference implementation as a save_pretrained folder, which prismatic.load and --model read:

  prismatic import-reference runs/prism-clip+7b imported/prism-clip+7b
  prismatic import-reference latest-checkpoint.pt imported/mine --model prism-clip+7b

CHECKPOINT is a run folder (checkpoints/latest-checkpoint.pt is taken) or a .pt file. Which parts it was trained with is
read from the run's config.json or config.yaml; --model, or the flags for single parts, override it. What the file
does not hold is what training started from: the pretrained vision backbone, unless that was trained, and after stage
align the pretrained LLM. Otherwise only the LLM's configuration and tokenizer are read. On a machine without network,
--llm names a folder that holds them. The weights have to fit exactly. No code in the file is run: one that asks for it
is refused.
"""


def main(argv: list[str]) -> None:
    """Runs the command line; errors are one line."""
    parser = argparse.ArgumentParser(
        prog="prismatic import-reference", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run folder or .pt file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--model", help="named model of recipes/configs/models.yaml, e.g. prism-clip+7b")
    parser.add_argument("--vision_backbone", help="id, or path of an aligned backbone, e.g. clip-vit-l-336px")
    parser.add_argument("--llm", help="id, Hugging Face id or folder, e.g. llama2-7b-pure")
    parser.add_argument("--projector", help="e.g. gelu-mlp")
    parser.add_argument("--image_resize_strategy", help="resize-naive, resize-crop or letterbox")
    try:
        print(f"wrote {imported(**vars(parser.parse_args(argv)))}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def imported(checkpoint: Path, out: Path, model: str | None, **parts: str | None) -> str:
    """Writes the model to the new folder `out`; returns what was written."""
    from prismatic.models.reference import import_reference

    models = read_presets("models.yaml")
    if model is not None and model not in models:
        raise unknown("model", model, models)
    return import_reference(checkpoint, out, preset=models.get(model), **parts)


if __name__ == "__main__":
    main(sys.argv[1:])
