"""Training data by name: `prismatic data list | prepare | look | verify`."""

import argparse
import sys
from pathlib import Path

from recipes import cli

_HELP = """\
Training data.

  list     the data sets that are known by name: rows, size, licence, and what of them is on disk
  prepare  downloads one of them, converts and mixes it as the published models had it, and checks it
  look     writes a page of rows as a model will see them: pixels, tokens, what is supervised, what is cut off
  verify   decodes every image and checks every row, as prismatic verify does
"""

_EPILOG = """\
from nothing to a finetune:
  prismatic data list
  prismatic data prepare llava-v1.5-instruct --data_root data
  prismatic data look data/download/llava-v1.5-instruct/llava_v1_5_mix665k.json
  prismatic data verify data/download/llava-v1.5-instruct/llava_v1_5_mix665k.json data/download/llava-v1.5-instruct
  prismatic finetune --model aligned-clip-vit-l-336px+7b
without a network:
  prismatic data look miniature:200

`prismatic data COMMAND --help` explains a command.
"""


def main(config: argparse.Namespace) -> None:
    """Runs a command."""
    if config.command == "list":
        from recipes.training_data.known import listed, read_table

        print(listed(config.data_root, read_table()))
    elif config.command == "prepare":
        from recipes.training_data.prepare import prepare

        raise SystemExit(prepare(config.name, config.data_root))
    elif config.command == "look":
        from recipes.training_data.look import look

        look(config.location, config.image_root, config.n, config.model, config.max_length, config.out, config.seed)
    else:
        from prismatic.data import verify

        sys.argv = ["prismatic data verify", *config.rest]
        raise SystemExit(verify.main())


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of the command line."""
    if argv[:1] == ["verify"]:  # which explains its own arguments
        return argparse.Namespace(command="verify", rest=argv[1:])
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("prismatic data", description=_HELP, epilog=_EPILOG, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,prepare,look,verify}")
    at = {"type": Path, "default": Path("data"), "metavar": "DIR", "help": "folder of all data sets (default: data)"}
    command = commands.add_parser("list", description="Prints the data sets that are known by name.")
    command.add_argument("--data_root", **at)
    command = commands.add_parser(
        "prepare",
        description="Makes a data set ready to be trained on. Interrupted, it goes on when started again. What it "
        "cannot fetch it lists with where to put it, and goes on once that is there.",
    )
    command.add_argument("name", help="of the data set: prismatic data list")
    command.add_argument("--data_root", **at)
    command = commands.add_parser(
        "look",
        description="Writes a page of rows as a model will see them, with statistics. It needs no network, no server.",
    )
    command.add_argument("location", help="as --data.sources of finetune takes it: a json, parquet, ..., miniature:N")
    command.add_argument("--image_root", type=Path, metavar="DIR", help="default: the folder of the data")
    command.add_argument("--n", type=_positive, default=24, help="rows, drawn at random (default: 24)")
    command.add_argument("--model", default="miniature", help="run or model that will see it (default: miniature)")
    command.add_argument("--max_length", type=_positive, default=2048, help="tokens of text of a row (default: 2048)")
    command.add_argument("--out", type=Path, default=Path("look.html"), help="the page (default: look.html)")
    command.add_argument("--seed", type=int, default=0, help="other rows (default: 0)")
    commands.add_parser("verify", add_help=False)
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


if __name__ == "__main__":
    cli.run(main, parse)
