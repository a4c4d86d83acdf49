"""`prismatic llms`: the language models that are known by name."""

import argparse
import sys

HELP = """\
List the language models that --llm knows by name, where they come from and how they are spoken to. Any Hugging Face id
(OWNER/NAME) or local folder works as well: `prismatic check-llm` tries one before GPUs are rented for it.
"""


def main(argv: list[str]) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="prismatic llms", description=HELP)
    parser.parse_args(argv)

    from prismatic.models.llm import get_llm_spec, list_llms
    from vision_backbones.table import table

    specs = map(get_llm_spec, list_llms())
    rows = [(s.id, "in this package" if s.id == "miniature" else s.hub, s.prompt_style or "its own") for s in specs]
    print(table(rows, ("id", "Hugging Face id", "prompt style")))


if __name__ == "__main__":
    main(sys.argv[1:])
