"""RefSpatial-Bench: points on things, and where things can be put, described in one to several steps."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.masks import masked
from eval.data.readers import find_all, name_of, reading, text, whole
from eval.scoring.points import in_mask, share_marked
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("refspatial", "RefSpatial-Bench")
SHAPE = "parquet with id, image, mask, object, prompt, suffix and step"
SIZES = {"location": 100, "placement": 100, "unseen": 77}


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the three files."""
    examples = []
    for subset in [split] if split in SIZES else SIZES:
        for path in find_all(root, "refspatial", FOLDERS, f"data/{subset}-*.parquet", f"{subset}-*.parquet"):
            with reading(path, "refspatial", SHAPE) as each:
                for row in each(rows_with_images(path, root, ("image", "mask"))):
                    asked = f"{text(row['prompt'])} {text(row['suffix'])}"
                    id, more = f"{subset}-{name_of(row['id'])}", {"step": whole(row["step"])}
                    mask, image = only(row["mask"]), only(row["image"])
                    examples.append(masked(root, mask, id, image, asked, subset, threshold=True, **more))
    return examples


register(
    Task(
        name="refspatial",
        version=2,
        read=read,
        prompt=prompts.bare,
        answer=lambda example: Generate(256),
        scorer=in_mask(by=("step",)),
        num_examples={"test": SIZES} | {subset: {subset: size} for subset, size in SIZES.items()},
        files=("refspatial/data/{location,placement,unseen}-*.parquet",),
        chance=share_marked,
        licence="Apache-2.0",
        note="its authors report the three subsets, the metric accuracy pools them; an answer without a point scores "
        "0, where its authors leave it out",
    )
)
