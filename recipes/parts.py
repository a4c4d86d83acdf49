"""`prismatic projectors` and `prismatic losses`: what there is by name, plugins included."""

import argparse
import sys

REGISTRIES = {
    "projectors": "List the projectors that --projector knows by name; `register_projector` adds one.",
    "losses": "List the losses of align and mim that --loss knows by name; `register_loss` adds one.",
}


def main(argv: list[str]) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog=f"prismatic {' '.join(argv[:1])}", description=REGISTRIES[argv[0]])
    parser.parse_args(argv[1:])
    if argv[0] == "projectors":
        from prismatic.models.projectors import PROJECTORS as known
    else:
        from vision_backbones.maskembed.loss import LOSSES as known
    from vision_backbones.table import table

    rows = [(name, (made.__doc__ or "").strip().split("\n")[0]) for name, made in known.items()]
    print(table(rows, ("name", "what it is")))


if __name__ == "__main__":
    main(sys.argv[1:])
