"""`python -m vision_backbones list` and `python -m vision_backbones describe ID`."""

import argparse

from vision_backbones import create_backbone, get_spec, import_plugins, list_backbones


def main() -> None:
    """Lists the registered backbones, or describes one without loading its weights."""
    parser = argparse.ArgumentParser(prog="python -m vision_backbones", description=main.__doc__)
    parser.add_argument("--plugins", nargs="*", default=[], metavar="MODULE", help="modules that register backbones")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every registered id with its family, image size and timm id")
    commands.add_parser("describe", help="one backbone in full").add_argument("id")
    args = parser.parse_args()
    try:
        import_plugins(args.plugins)
        if args.command == "list":
            for id in list_backbones():
                spec = get_spec(id)
                arch = spec.arch or " + ".join(part.id for part in spec.parts)
                print(f"{id:34}{spec.family:11}{spec.image_size or '':>5}  {arch}")
        else:
            describe(args.id)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


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
