"""Questions whose answer is a region, which comes as a picture."""

from pathlib import Path
from typing import Any

from eval.data import embedded
from eval.scoring.points import packed
from eval.task import Example
from vision_backbones.safe_images import open_image

MOST_PIXELS = 50_000_000


def masked(
    root: Path, mask: str, id: str, image: str, question: str, subset: str = "", threshold: bool = False, **info: Any
) -> Example:
    """An example whose `info` has the size of its mask, and the mask as `in_mask` takes it.

    Args:
        root: Data root.
        mask: Picture of the region, as examples call pictures; its grey says how far a pixel belongs to it.
        id: Of the example, as the rest.
        image: What is shown.
        question: What is asked.
        subset: Sub-split.
        threshold: All that is not black belongs to the region as a whole.
        info: Besides.

    Raises:
        ValueError: The mask is not there, is no picture, or is dark all over; or the question is empty.
    """
    import numpy as np

    if not question.strip():
        raise ValueError("the question is empty")
    try:
        with open_image(embedded.source(root, mask)) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"it has {file.width} x {file.height} pixels")
            grey = np.array(file.convert("L"))
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"mask {mask}: unreadable ({type(error).__name__}: {error})") from None
    if threshold:
        grey = np.where(grey > 0, np.uint8(255), np.uint8(0))
    inside = grey > 127
    if not inside.any():
        raise ValueError(f"mask {mask} is empty: expected a region brighter than its surroundings")
    (height, width), rows, columns = grey.shape, inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    within = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    answer = {"within": [round(float(x), 3) for x in within], "share": round(float(grey.mean() / 255), 4)}
    size = {"width": width, "height": height}
    return Example(id, image, question, answer, subset, size | {"mask": packed(grey)} | info)
