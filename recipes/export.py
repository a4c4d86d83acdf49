"""`prismatic export RUN OUT`: what training left behind as a plain folder, in one precision."""

import argparse
import sys
from pathlib import Path

HELP = """\
Write a trained model as a plain save_pretrained folder, which prismatic.load reads:

  prismatic export runs/mine exported/mine --dtype bfloat16
  prismatic export runs/mine/checkpoints/step-00001500 exported/step-1500
  prismatic export runs/mine-lora exported/adapters --keep_adapters
  prismatic export runs/mine exported/mine-llava --format llava
  prismatic export runs/mine exported/anywhere --format portable

RUN is a run (its newest checkpoint is taken), the folder of an epoch, a step checkpoint of any number of processes,
LoRA adapters, or any other model that prismatic.load reads. LoRA adapters are merged in float32 and then converted,
unless they are to be kept: then they are written as peft does, with prismatic_parts.json, which says what they adapt.

--format llava writes transformers' LlavaForConditionalGeneration with its processor, for programs that serve LLaVA. It
takes CLIP or SigLIP, the projectors linear and gelu-mlp, and images resized by resize-naive; what would not compute the
same is refused with the reason. `prismatic import-llava` reads such folders.

--format portable puts the code that the model needs beside it: where timm is installed and this package is not,
transformers loads the folder with trust_remote_code=True.
"""
DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("prismatic", "llava", "portable")


def main(argv: list[str]) -> None:
    """Runs the command line; errors are one line."""
    parser = argparse.ArgumentParser(
        prog="prismatic export", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of all weights (default: float32, as in training)"
    )
    parser.add_argument(
        "--base", help="current path of the base LLM of LoRA adapters, if it has moved; PART=PATH,... for other parts"
    )
    parser.add_argument("--keep_adapters", action="store_true", help="write LoRA adapters without merging them")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="prismatic",
        help="prismatic (default); llava, as transformers has it; portable, with the code that it needs",
    )
    try:
        print(f"wrote {export(**vars(parser.parse_args(argv)))}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def export(
    run: str,
    out: Path,
    dtype: str = "float32",
    keep_adapters: bool = False,
    base: str | None = None,
    format: str = "prismatic",
) -> Path:
    """Writes the model to the new folder `out`.

    Args:
        run: whatever `prismatic.load` reads.
        out: must not exist.
        dtype: name of the precision of every tensor.
        base: where what adapters adapt lies now, if it was moved.
        keep_adapters: write peft adapters and what they adapt, instead of merging.
        format: "prismatic", "llava" (see `prismatic.models.llava.export_llava`) or "portable" (see
            `prismatic.models.portable.save_portable`).

    Raises:
        ValueError: nothing is at `run`, `out` exists, there are no adapters to keep, the checkpoint is damaged, or the
            model cannot be expressed exactly in that format.
    """
    import torch

    from prismatic.checkpoints.epoch import save_model
    from prismatic.models.load import load
    from prismatic.models.lora import beside_adapters, relocated

    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    if keep_adapters and format != "prismatic":
        raise ValueError(f"--format {format} holds whole models, no adapters: leave out --keep_adapters, to merge them")
    parts = adapted(run) if keep_adapters else None
    if format == "llava":
        from prismatic.models.llava import export_llava

        for note in export_llava(*load(run, base=base), out, dtype):
            print(f"note: {note}")
        return out
    model, processor = load(run, dtype=getattr(torch, dtype), merge=not keep_adapters, base=base)
    if format == "portable":
        from prismatic.models.portable import save_portable

        return save_portable(model, processor, out)
    metadata = None if parts is None else beside_adapters(model, relocated(parts, base, run), out)
    return save_model(model, processor, out, metadata=metadata)


def adapted(run: str) -> dict:
    """What the adapters of a run or checkpoint adapt: the arguments of `prismatic.models.load.start`.

    Raises:
        ValueError: there are none.
    """
    from prismatic.checkpoints.epoch import latest_checkpoint
    from prismatic.checkpoints.step import STATE_JSON
    from prismatic.models.load import find_model
    from prismatic.models.lora import PARTS_FILE
    from prismatic.models.reject_remote_code import read_object

    place = find_model(run)
    if place is None:
        raise ValueError(f"no folder {run}, with adapters to keep")
    folder = (latest_checkpoint(place) if (place / "checkpoints").is_dir() else place) or place
    if (folder / PARTS_FILE).is_file():
        return read_object(folder / PARTS_FILE)
    metadata = read_object(folder / STATE_JSON) if (folder / STATE_JSON).is_file() else {}
    if metadata.get("stage") != "lora":
        raise ValueError(f"{folder} holds no adapters to keep: leave out --keep_adapters")
    return metadata["parts"]


if __name__ == "__main__":
    main(sys.argv[1:])
