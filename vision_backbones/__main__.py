"""`python -m vision_backbones` (`list`), `describe ID`, `convert IN OUT --backbone ID` and `export ID OUT`."""

import argparse
import sys
from pathlib import Path

from vision_backbones import create_backbone, import_plugins, listing
from vision_backbones.names import take_plugins
from vision_backbones.table import table

LIST = """\
List every registered backbone: id, family, side of the image in pixels, tokens it gives, whether it is locality-aligned
(`is`) or an aligned sibling is registered (`has`: add -aligned to the id), licence of the weights as timm records it
(the model card decides), and timm id.
"""
CONVERT = """\
Write a checkpoint of locality alignment as an aligned backbone:

  OUT.safetensors          the ViT with timm's names, its description in the metadata
  OUT.decoder.safetensors  the MaskEmbed decoder, if the checkpoint has one (for the projector 'pretrained-decoder')

OUT.safetensors can then be named wherever a vision backbone is asked for; copied to the folder of weights under the
name that the backbone's error message gives, the backbone's id finds it.

IN is .pth.tar, .pth, .pt or .bin as torch.save wrote it, or .safetensors. Its moving average (EMA) is taken where there
is one, LayerScale is folded into the layers before it where the backbone has none, attention pooling and classifiers
are dropped. The rest has to fit the backbone exactly. No code in the file is run: one that asks for it is refused.
"""

EXPORT = """\
Write a backbone as a repository of timm:

  OUT/config.json        architecture, arguments, normalisation
  OUT/model.safetensors  all blocks and the final norm
  OUT/README.md          how it is loaded

timm.create_model("local-dir:OUT", pretrained=True) reads it; uploaded as it is, "hf-hub:OWNER/NAME" does. The
architecture of a soft-capped ViT is soft_capped_vit, which `import vision_backbones` registers: without it timm refuses
the folder. What was written is loaded and compared before the command ends.
"""


def main() -> None:
    """Lists vision backbones (this is what it does alone), describes, converts or exports one."""
    parser = argparse.ArgumentParser(prog="python -m vision_backbones", description=main.__doc__)
    parser.add_argument("--plugins", metavar="MODULE,...", help="modules that register backbones, imported first")
    commands = parser.add_subparsers(dest="command")
    parser.set_defaults(command="list", full=False, timm=None)
    listed = commands.add_parser("list", help="every registered id with size, tokens and licence", description=LIST)
    listed.add_argument("--full", action="store_true", help="width and parameters too: builds each, without weights")
    listed.add_argument(
        "--timm", metavar="PATTERN", help="of timm's ids instead, what timm:<timm id> takes, e.g. 'vit_*'"
    )
    described = commands.add_parser("describe", help="one backbone in full")
    described.add_argument("id", help="registered id, timm:<timm id>, run folder of recipes/align.py, or A+B")
    converted = commands.add_parser(
        "convert",
        help="a checkpoint of others to an aligned backbone",
        description=CONVERT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    converted.add_argument("checkpoint", type=Path, metavar="IN", help="e.g. clip-vit-b.pth.tar")
    converted.add_argument("out", type=Path, metavar="OUT.safetensors", help="a new file")
    converted.add_argument("--backbone", required=True, metavar="ID", help="which ViT it is, e.g. clip-vit-b-aligned")
    exported = commands.add_parser(
        "export",
        help="a backbone as a folder that timm loads",
        description=EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    exported.add_argument("id", help="registered id, timm:<timm id>, or a run folder of recipes/align.py")
    exported.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    try:
        argv, plugins = take_plugins(sys.argv[1:])
        args = parser.parse_args(argv)
        import_plugins(plugins)
        if args.command == "list":
            list_all(args.full, args.timm)
        elif args.command == "describe":
            describe(args.id)
        elif args.command == "export":
            from vision_backbones.timm_folder import export_timm

            print(export_timm(args.id, args.out))
        else:
            from vision_backbones.convert import convert

            print(convert(args.checkpoint, args.out, args.backbone))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def list_all(full: bool, pattern: str | None) -> None:
    """Prints the registered backbones, or, as they are looked at, those of timm whose ids fit a pattern."""
    if pattern is None:
        columns = listing.MORE if full else listing.COLUMNS
        print(table(listing.rows(full), columns, left=len(columns)))
        return
    rows = []
    for row in listing.timm_rows(pattern):
        rows.append(row)
        print("  ".join(row), flush=True)
    print(f"{sum(len(row) > 2 for row in rows)} of {len(rows)} can be backbones")


def describe(id: str) -> None:
    """Prints the spec and the shapes of a backbone."""
    import torch

    with torch.device("meta"):
        backbone = create_backbone(id, pretrained=False)
    for name, value in backbone.spec.to_dict().items():
        if value not in (None, "", [], {}, False):
            print(f"{name:16}{[part['id'] for part in value] if name == 'parts' else value}")
    print(f"{'output':16}[B, {backbone.num_tokens}, {backbone.embed_dim}]", end="")
    print(f", {backbone.num_prefix_tokens} prefix tokens, patches {backbone.grid[0]} x {backbone.grid[1]}")
    print(f"{'parameters':16}{sum(p.numel() for p in backbone.parameters()):,}")


if __name__ == "__main__":
    main()
