"""`python -m prismatic export RUN OUT`: a run or checkpoint as a plain Hugging Face folder.

`python -m prismatic import-reference CHECKPOINT OUT`: a checkpoint of the reference implementation as such a folder.

`python -m prismatic plan --model NAME --gpus N`: what a finetune needs, before it is started.
"""

import argparse
import sys
from pathlib import Path

from prismatic import plan_command
from prismatic.export_command import add_export, export

IMPORT = """\
Write a checkpoint of the reference implementation as a save_pretrained folder, which prismatic.load and --model read:

  python -m prismatic import-reference runs/prism-clip+7b imported/prism-clip+7b
  python -m prismatic import-reference latest-checkpoint.pt imported/mine --model prism-clip+7b

CHECKPOINT is a run folder (checkpoints/latest-checkpoint.pt is taken) or a .pt file. Which parts it was trained with is
read from the run's config.json or config.yaml; --model, or the flags for single parts, say it otherwise. What the file
does not hold is what training started from: the pretrained vision backbone, unless that was trained, and after stage
align the pretrained LLM. Otherwise only the LLM's configuration and tokenizer are read. On a machine without network,
--llm names a folder that holds them. The weights have to fit exactly. No code in the file is run: one that asks for it
is refused.
"""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m prismatic", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_export(commands)
    imported = commands.add_parser(
        "import-reference",
        help="write a checkpoint of the reference implementation as a save_pretrained folder",
        description=IMPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imported.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run folder or .pt file")
    imported.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    imported.add_argument("--model", help="named model of recipes/configs/models.yaml, e.g. prism-clip+7b")
    imported.add_argument("--vision_backbone", help="id, or path of an aligned backbone, e.g. clip-vit-l-336px")
    imported.add_argument("--llm", help="id, Hugging Face id or folder, e.g. llama2-7b-pure")
    imported.add_argument("--projector", help="e.g. gelu-mlp")
    imported.add_argument("--image_resize_strategy", help="resize-naive, resize-crop or letterbox")
    commands.add_parser("plan", help="memory, arithmetic and hours of a finetune; needs no GPU and no weights")
    if sys.argv[1:2] == ["plan"]:  # which takes all the settings of a finetune
        return plan_command.main(sys.argv[2:])
    arguments = vars(parser.parse_args())
    command = {"import-reference": _import, "export": export}[arguments.pop("command")]
    try:
        print(f"wrote {command(**arguments)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _import(checkpoint: Path, out: Path, model: str | None, **parts: str | None) -> str:
    from prismatic.models.reference import import_reference
    from recipes.parsing import unknown
    from recipes.presets import read_presets

    models = read_presets("models.yaml")
    if model is not None and model not in models:
        raise unknown("model", model, models)
    return import_reference(checkpoint, out, preset=models.get(model), **parts)


if __name__ == "__main__":
    main()
