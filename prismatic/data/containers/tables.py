"""Conversations in Arrow tables of the library `datasets`: folders of `save_to_disk`, and data sets of the hub."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from huggingface_hub import is_offline_mode

from prismatic.data.containers.common import BATCH, indexed, is_path
from prismatic.data.conversation_source import IndexedSource
from prismatic.data.image_stores import ArrowImages, stamp
from prismatic.data.row_layouts import LAYOUTS, image_column, layout_of
from vision_backbones.names import suggest


def split_of(location: str) -> tuple[str, str | None]:
    """A folder and the split that `FOLDER:SPLIT` names in it, None without one."""
    folder, colon, split = location.rpartition(":")
    return (folder, split) if colon and not Path(location).exists() else (location, None)


def open_disk(location: str, layout: str, image_root, exif_rotate: bool) -> IndexedSource:
    """The rows of a folder that `save_to_disk` wrote; see `open_source`."""
    folder, split = split_of(location)
    try:
        loaded = load_from_disk(folder, keep_in_memory=False)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} cannot be read ({' '.join(str(error).split())}): save it again") from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            near = suggest(f"{folder}:{split}", [f"{folder}:{name}" for name in loaded])
            raise ValueError(f"{location} names none of the splits {', '.join(loaded)}: {near}")
        loaded = loaded[split]
    elif split:
        raise ValueError(f"{folder} holds no splits: leave out :{split}")
    return _open_table(location, loaded, layout, Path(image_root or folder), exif_rotate)


def open_hub(location: str, layout: str, image_root, exif_rotate: bool) -> IndexedSource:
    """The rows of a data set of the hub, which `datasets` downloads and keeps as Arrow files; see `open_source`."""
    loaded = load_hub(location, keep_in_memory=False)
    return _open_table(location, loaded, layout, Path(image_root or "."), exif_rotate)


def load_hub(location: str, **options) -> Dataset | IterableDataset:
    """What `load_dataset` gives for `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`.

    Raises:
        ValueError: there is no such data set, no network, or no split is named.
    """
    name, *config = location.removeprefix("hf:").rsplit(":", 2)
    if not config or not all((name, *config)):
        raise ValueError(f"{location!r} names no split; expected hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    split = config.pop()
    try:
        return load_dataset(name, *config, split=split, **options)
    except Exception as error:  # datasets raises its own, those of the hub's client, OSError, ValueError, ...
        call = f"load_dataset({', '.join(map(repr, [name, *config]))}, split={split!r})"
        offline = " HF_HUB_OFFLINE is set, and the cache does not hold it:" if is_offline_mode() else ""
        raise ValueError(
            f"{location} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]});{offline} run "
            f"datasets.{call} once where there is network, with the same HF_HOME"
        ) from error


def _open_table(location: str, loaded: Dataset, layout: str, root: Path, exif_rotate: bool) -> IndexedSource:
    """A source of the rows of `datasets`, which are mapped into memory."""
    table = loaded.data.table
    name, images = layout_of(table.column_names, layout, location), image_column(table.column_names, location)
    texts = table.select([column for column in ("id", *LAYOUTS[name].columns) if column in table.column_names])
    embedded = bool(images) and not is_path(table.schema.field(images).type, images, location)
    if images:
        texts = texts.append_column(images, _without_bytes(table[images]) if embedded else table[images])
    files = [Path(file["filename"]) for file in loaded.cache_files]

    def rows(advance: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
        size = sum(stamp(file)[0] for file in files)
        for batch in texts.to_batches(BATCH):
            yield from batch.to_pylist()
            advance(size * len(batch) // len(texts))

    source = indexed(location, name, files, rows, exif_rotate)
    if embedded:
        source.images = ArrowImages(loaded, images, root)
    else:
        source.read_images_below(root)
    return source


def _without_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Images as their paths alone, as structs or lists of them; no pixels are read."""
    kind = column.type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_struct(inner):
        return column
    paths = pa.struct([("path", pa.string())])
    return column.cast(paths if inner is kind else pa.list_(paths))
