"""Files of drawn scenes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from prismatic.miniature.scenes import IMAGE_SIZE


def save(image: np.ndarray, path: Path, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> None:
    """Writes a picture, enlarged to `size` without smoothing, as what its name says; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix in (".jpg", ".jpeg") else {"compress_level": 1}
    Image.fromarray(image).resize(size, Image.Resampling.NEAREST).save(path, **options)


def dump(path: Path, content) -> None:
    """Writes JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
