"""`prismatic import-llava FOLDER OUT`: a LLaVA 1.5 of transformers' layout as a plain folder of this package."""

import argparse
import sys
from pathlib import Path

HELP = """\
Write a LlavaForConditionalGeneration as a save_pretrained folder, which prismatic.load and --init_from read:

  prismatic import-llava llava-1.5-7b-hf imported/llava-1.5-7b
  prismatic import-llava exported/mine-llava imported/mine

FOLDER is what `prismatic export --format llava` writes or a repository in the layout of llava-hf/llava-1.5-7b-hf holds,
with *.safetensors. Weights are written in float32. Images come right after BOS afterwards; prompts of llava-hf have
them after "USER: ".
"""


def main(argv: list[str]) -> None:
    """Runs the command line; errors are one line."""
    parser = argparse.ArgumentParser(
        prog="prismatic import-llava", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder in the layout of llava-hf")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument(
        "--prompt_style", default="auto", help="chat template by name or file (default: the folder's, else vicuna-v1.5)"
    )
    arguments = parser.parse_args(argv)
    try:
        from prismatic.models.llava_import import import_llava

        print(f"wrote {import_llava(**vars(arguments))}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
