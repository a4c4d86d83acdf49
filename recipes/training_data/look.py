"""A page of rows as a model will see them: `prismatic data look`."""

import random
from pathlib import Path

from recipes.training_data.measure import MEASURED, measured
from recipes.training_data.shown_rows import shown


def look(location: str, image_root: Path | None, n: int, model: str, max_length: int, out: Path, seed: int) -> None:
    """Writes the page.

    Args:
        location: As `open_source` takes it.
        image_root: Folder that image paths are relative to; None is that of the data.
        n: How many rows are shown, drawn at random.
        model: Run or model whose tokenizer, chat template and image transform are used.
        max_length: Tokens of text beyond which training cuts a row off.
        out: The page.
        seed: Another one draws other rows.

    Raises:
        ValueError: There is no such data or model.
    """
    from eval.report.pages import render
    from prismatic.data.sources import open_source
    from vision_backbones.files import write_text

    source, processor = open_source(location, image_root=image_root), processor_of(model)
    order = random.Random(seed).sample(range(len(source)), min(len(source), max(n, MEASURED)))
    numbers = measured(source, order[:MEASURED], processor, max_length)
    rows = [shown(source, row, processor, max_length) for row in sorted(order[:n])]
    about = {"location": location, "model": model, "max_length": max_length, "seed": seed, "total": len(source)}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render(Path(__file__).with_name("look.html"), rows=rows, found=numbers, **about))
    print(f"{out}: {len(rows)} of {len(source):,} rows, statistics of {numbers['rows']:,}")


def processor_of(model: str):
    """The processor of a run or model, without its weights where it was saved beside them.

    Raises:
        ValueError: There is no such model.
    """
    import prismatic
    from prismatic.checkpoints.epoch import latest_checkpoint
    from prismatic.models.load import find_model
    from prismatic.models.reject_remote_code import refuse_code

    path = find_model(model)
    if path and (path / "checkpoints").is_dir() and (newest := latest_checkpoint(path)):
        path = refuse_code(newest)
    if path and (path / "processor_config.json").is_file():
        return prismatic.PrismaticProcessor.from_pretrained(path, trust_remote_code=False)
    return prismatic.load(model)[1]
