"""Conversations in parquet files, with images in a column, or with their paths."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismatic.data.containers.common import BATCH, files_of, indexed, is_path
from prismatic.data.conversation_source import IndexedSource
from prismatic.data.image_stores import Files, ParquetImages, stamp
from prismatic.data.row_layouts import LAYOUTS, image_column, layout_of


def open_parquet(location: str, layout: str, image_root, exif_rotate: bool) -> IndexedSource:
    """The rows of parquet files; see `open_source`. Of embedded images only their number and paths are read."""
    files = files_of(location, "parquet")
    with ThreadPoolExecutor() as pool:
        footers = list(pool.map(_footer, files))
    schema = footers[0].schema.to_arrow_schema()
    name, images = layout_of(schema.names, layout, location), image_column(schema.names, location)
    texts = [column for column in ("id", *LAYOUTS[name].columns) if column in schema.names]
    leaves = [footers[0].schema.column(number).path for number in range(footers[0].num_columns)]
    pixels = None
    if images and not is_path(schema.field(images).type, images, location):
        inside = [leaf for leaf in leaves if leaf.split(".")[0] == images]
        pixels = next((leaf for leaf in inside if leaf.endswith(".bytes")), inside[0])
        texts += [leaf for leaf in inside if leaf.endswith(".path")] or inside
    elif images:
        texts.append(images)
    for file, footer in zip(files, footers, strict=True):
        _check_columns(file, footer, [leaf for leaf in leaves if leaf.split(".")[0] in (*texts, images)])

    def rows(advance: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
        for file, footer in zip(files, footers, strict=True):
            try:
                with file.open("rb") as handle, pq.ParquetFile(handle) as parquet:
                    for batch in parquet.iter_batches(BATCH, columns=texts, use_threads=False):
                        yield from batch.to_pylist()
                        advance(stamp(file)[0] * len(batch) // footer.num_rows)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(file, error) from error

    source = indexed(location, name, files, rows, exif_rotate)
    root = Path(image_root or (location if Path(location).is_dir() else files[0].parent))
    if pixels and any(_holds_bytes(footer, pixels) for footer in footers):
        source.images = ParquetImages(Files(files), footers, pixels, source.image_counts, root)
    else:
        source.read_images_below(root)
    return source


def _footer(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is cut off, damaged or no parquet ({str(error).splitlines()[0]}): download it again")


def _check_columns(file: Path, footer: pq.FileMetaData, needed: Sequence[str]) -> None:
    there = {footer.schema.column(number).path for number in range(footer.num_columns)}
    if missing := [leaf for leaf in needed if leaf not in there]:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}, which the files before it have; it has {', '.join(sorted(there))}: "
            "name files of one kind, or list them as sources of their own"
        )


def _holds_bytes(footer: pq.FileMetaData, leaf: str) -> bool:
    number = next(n for n in range(footer.num_columns) if footer.schema.column(n).path == leaf)
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(number)
        if chunk.statistics is None or chunk.statistics.null_count != chunk.num_values:
            return True
    return False
