"""The data that the settings of a run name."""

from pathlib import Path

from prismatic.data.conversation_source import ConversationSource
from prismatic.data.image_stores import BadImageError, MissingImageError, RefusedPathError
from prismatic.data.llava_json import ConversationDataset
from prismatic.data.mixture import drawn_held_out, open_sources
from prismatic.data.sources import open_source
from prismatic.data.streams import open_stream

__all__ = [
    "BadImageError", "ConversationDataset", "ConversationSource", "MissingImageError", "RefusedPathError", "open_data",
]  # fmt: skip


def open_data(data, seed: int = 0) -> tuple[ConversationSource, ConversationSource | None]:
    """The training rows and the held-out rows (None without any) that a `DataConfig` names.

    "miniature:N" as annotations draws N questions about scenes of the miniature world, which has held-out rows of its
    own; the config is filled in with the files that were read.

    Args:
        data: the config.
        seed: of the run; it decides which rows of a source are left out of a mixture.

    Raises:
        ValueError: a file is absent or malformed, or names rows that cannot be trained on or images that are missing.
    """
    if data.annotations.startswith("miniature:"):
        from prismatic.miniature.llava_writer import miniature_llava

        folder = miniature_llava(int(data.annotations.removeprefix("miniature:")))
        data.annotations, data.held_out = str(folder / "train.json"), data.held_out or str(folder / "held_out.json")

    def opened(annotations: str) -> ConversationSource:
        if not annotations.endswith((".json", ".jsonl")) and annotations != data.annotations:
            return open_source(annotations, data.layout, data.image_root, exif_rotate=data.exif_rotation)
        root = data.image_root or Path(annotations).parent
        return ConversationDataset(Path(annotations), Path(root), exif_rotate=data.exif_rotation)

    if data.streaming:
        source = open_stream(data.sources[0], data.layout, data.image_root, exif_rotate=data.exif_rotation)
    elif data.sources:
        source = open_sources(data.sources, data.layout, data.image_root, exif_rotate=data.exif_rotation, seed=seed)
        data.held_out = data.held_out or next(filter(None, map(drawn_held_out, data.sources)), None)
    else:
        source = opened(data.annotations)
    held_out = opened(data.held_out) if data.held_out else None
    for rows in (source, held_out) if held_out else (source,):
        rows.check_rows()
        rows.check_images(data.on_bad_image == "skip" and rows is source)
    return source, held_out
