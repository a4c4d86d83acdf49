"""The rows of a LLaVA json or jsonl."""

import functools
from pathlib import Path

from prismatic.data.conversation_source import IndexedSource
from prismatic.data.llava_index import index_of
from vision_backbones.files import describe


class ConversationDataset(IndexedSource):
    """Rows of a LLaVA annotation file, and their images below one folder.

    The first opening writes an Arrow index, which this and later ones map into memory.
    """

    def __init__(self, annotations: Path, image_root: Path, *, exif_rotate: bool = False):
        """Opens a data set, indexing it first where needed.

        Args:
            annotations: one JSON array of rows, or one row a line.
            image_root: folder that image paths are relative to.
            exif_rotate: turn photographs upright by their EXIF orientation; the paper does not.

        Raises:
            ValueError: the file is absent, empty or malformed (the row is named), or `image_root` is no folder.
        """
        self.annotations, self.image_root = Path(annotations), Path(image_root)
        super().__init__(self.annotations, [self.annotations], index_of(self.annotations), exif_rotate=exif_rotate)
        self.read_images_below(self.image_root)

    @functools.cached_property
    def digest(self) -> str:  # noqa: D102
        return describe(self.annotations)["sha256"]
