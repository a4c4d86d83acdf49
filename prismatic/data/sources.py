"""Conversations about images in the files that people have: json, parquet, `datasets`, tar shards."""

from collections.abc import Callable
from pathlib import Path

from prismatic.data import llava_index
from prismatic.data.containers.common import EXPECTED, indexed
from prismatic.data.containers.parquet import open_parquet
from prismatic.data.containers.tables import open_disk, open_hub, split_of
from prismatic.data.containers.tars import open_tars
from prismatic.data.conversation_source import IndexedSource
from prismatic.data.llava_json import ConversationDataset
from prismatic.data.row_layouts import layout_of
from prismatic.data.tar_index import matching


def open_source(
    location: str, layout: str = "auto", image_root: str | Path | None = None, *, exif_rotate: bool = False
) -> IndexedSource:
    """The conversations at a place, indexed first where needed; the index holds texts and no pixels.

    Args:
        location: one of
            a LLaVA json or jsonl;
            parquet files: a folder of them, `DIR/train-*.parquet`, one file;
            a folder that `datasets.save_to_disk` wrote, with `:SPLIT` if it holds several;
            `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`, a data set of the Hugging Face hub or its cache;
            tar shards in webdataset's convention: a folder, `DIR/*.tar`, `DIR/name-{000..123}.tar`, one file;
            `miniature:COUNT`, so many questions about scenes of the miniature world, five a scene.
        layout: of the rows, a name among `LAYOUTS`; "auto" tells it by the columns.
        image_root: folder that image paths are relative to; None for the folder of the data.
        exif_rotate: turn photographs upright by their EXIF orientation; the paper does not.

    Raises:
        ValueError: nothing is there, it is unclear what is meant, or a row is malformed; one line that names it.
    """
    kind = kind_of(location)
    if kind is None:
        place = matching(location, EXPECTED)[0]
        below = next((file.parent for kind in ("parquet", "tar") for file in sorted(place.glob(f"*/*.{kind}"))), None)
        near = f"; name {below}, which holds some" if below else ""
        raise ValueError(f"{place} holds no conversations; expected {EXPECTED}{near}")
    return _OPEN[kind](location, layout, image_root, exif_rotate)


def kind_of(location: str) -> str | None:
    """What conversations a place holds, a name among `_OPEN`; None for what holds none, or is not there."""
    if location.startswith(("hf:", "miniature:")):
        return location.partition(":")[0]
    if location.endswith((".json", ".jsonl")):
        return "json"
    folder = Path(split_of(location)[0])
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return "disk"
    for kind in ("parquet", "tar"):
        if Path(location).is_dir():
            if any(Path(location).glob(f"*.{kind}")):
                return kind
        elif location.endswith(f".{kind}"):
            return kind
    return None


def _open_json(location: str, layout: str, image_root, exif_rotate: bool) -> IndexedSource:
    path = Path(location)
    llava_index.check_file(path)
    first = next(llava_index.read_rows(path, lambda size: None), None)
    name = layout_of(first, layout, f"{location}: row 0") if isinstance(first, dict) else "llava"
    root = Path(image_root or path.parent)
    if name == "llava":
        return ConversationDataset(path, root, exif_rotate=exif_rotate)
    source = indexed(location, name, [path], lambda advance: llava_index.read_rows(path, advance), exif_rotate)
    source.read_images_below(root)
    return source


def _open_miniature(location: str, layout: str, image_root, exif_rotate: bool) -> IndexedSource:
    from prismatic.miniature.llava_writer import miniature_llava

    count = location.removeprefix("miniature:")
    if not count.isdecimal():
        raise ValueError(f"{location!r} names no scenes; expected a number of questions, miniature:10000")
    return _open_json(str(miniature_llava(int(count)) / "train.json"), "auto", None, exif_rotate)


_OPEN: dict[str, Callable[..., IndexedSource]] = {
    "json": _open_json, "miniature": _open_miniature, "parquet": open_parquet, "disk": open_disk, "hf": open_hub,
    "tar": open_tars,
}  # fmt: skip
