"""Weights that others released, fetched by name when they are first used.

The authors' checkpoint is downloaded, checked, converted to `NAME.safetensors` in the folder of weights (its decoder
beside it), and deleted. `NAME.json` keeps the checksums.
"""

import dataclasses
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vision_backbones.backbone_files import decoder_path, write_converted
from vision_backbones.files import describe, read_json, write_json
from vision_backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from torch import nn

MIRROR = "VISION_BACKBONES_MIRROR"  # environment variable: address of a folder with the files under their names


@dataclass(frozen=True)
class Release:
    """A checkpoint that its authors offer.

    Attributes:
        backbone: Registered id of the ViT in it.
        file: Its name here and on a mirror.
        url: Where it is downloaded.
        page: Where a browser finds it.
        image_size: Of the ViT, in pixels.
        allow_border: As in the spec.
        sha256: Of the file; None where its authors publish none, so that the first download is taken on trust.
    """

    backbone: str
    file: str
    url: str
    page: str
    image_size: int
    allow_border: bool = False
    sha256: str | None = None


def _drive(backbone: str, id: str, image_size: int, allow_border: bool = False) -> Release:
    url, page = f"https://drive.google.com/uc?export=download&id={id}", f"https://drive.google.com/file/d/{id}/view"
    return Release(backbone, f"{backbone}.pth.tar", url, page, image_size, allow_border)


_MOCO = "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar"
RELEASED = {  # by the `weights` of specs
    "clip-vit-b-maskembed": _drive("clip-vit-b-aligned", "1jZcgXIRXSoObN0HmFjjd9Plp-U91C9a7", 224),
    "clip-vit-l-maskembed": _drive("clip-vit-l-aligned", "1IL_bbEyT1nvm-TUQLQw-7XIIAbrdv5PC", 224),
    "clip-vit-l-336px-maskembed": _drive("clip-vit-l-336px-aligned", "1PyV7aSvQWiisruFx7f7XZFk72Dl1cRzE", 336),
    "siglip-vit-so400m-384px-maskembed": _drive(
        "siglip-vit-so400m-384px-aligned", "1hKIEXqREqVsPim1aIrJtFHUSplj2varv", 384, allow_border=True
    ),
    "moco-vit-b": Release("moco-vit-b", "vit-b-300ep.pth.tar", _MOCO, _MOCO, 224),
}


def record_path(weights: Path) -> Path:
    """Returns where the checksums of fetched weights are kept: `NAME.json` beside them."""
    return weights.with_suffix(".json")


def obtain(spec: BackboneSpec, weights: Path, missing: str) -> Path:
    """Fetches and converts the checkpoint that `spec.weights` names; returns `weights`, its file, which then is there.

    A checkpoint that lies beside `weights` under its own name, put there by hand, is taken in place of a download, and
    kept. Of several processes that ask at once, one works and the others wait.

    Args:
        spec: Its `weights` are among `RELEASED`.
        weights: `NAME.safetensors` in the folder of weights.
        missing: Begins the message of an error.

    Raises:
        ValueError: The checkpoint cannot be fetched (the message says how to do without a network), is not the one
            that was first downloaded, would run code, or does not fit.
    """
    from vision_backbones.downloads import FetchError, alone, offline

    release = RELEASED[spec.weights or ""]
    checkpoint, name = weights.with_name(release.file), weights.name
    by_hand = (
        f"download {release.page} with a browser or on another machine, save it as {checkpoint} and start again (or "
        f"run `prismatic backbones convert {release.file} {weights} --backbone {release.backbone}`); set "
        "VISION_BACKBONES_WEIGHTS to a folder that holds the weights, or pass pretrained=False for random ones"
    )
    try:
        if not checkpoint.is_file() and offline():
            raise FetchError("HF_HUB_OFFLINE is set")
        weights.parent.mkdir(parents=True, exist_ok=True)
        with alone(weights.with_name(f".{name}.lock"), f"waiting for another process, which fetches {name}"):
            if not weights.is_file():
                _make(release, spec, weights, checkpoint)
    except FetchError as error:
        raise ValueError(f"{missing}, and it could not be fetched ({error}): {by_hand}") from None
    except OSError as error:
        raise ValueError(
            f"{missing}, and none can be written ({error}): set VISION_BACKBONES_WEIGHTS to a folder with room"
        ) from error
    return weights


def _make(release: Release, spec: BackboneSpec, weights: Path, checkpoint: Path) -> None:
    """Leaves the converted weights and their record, or nothing."""
    url, record, expected = _url(release), record_path(weights), release.sha256
    if expected is None and record.is_file():
        remedy = "delete it to accept the checkpoint as it is"
        expected = _sha256(read_json(record, remedy, "checkpoint")["checkpoint"], record, remedy)
    downloaded = not checkpoint.is_file()
    if downloaded:
        _download(url, checkpoint)
    try:
        found = describe(checkpoint)
        if expected not in (None, found["sha256"]):
            raise ValueError(
                f"{url if downloaded else checkpoint} is not the file that was expected: its sha256 is "
                f"{found['sha256']}, expected {expected}. If it is right, delete {record} and start again"
            )
        size = {"image_size": release.image_size, "allow_border": release.allow_border}
        spec = dataclasses.replace(spec, **size)  # whatever size was asked for, the file keeps its own
        print(write_converted(checkpoint, weights, spec, _empty_vit(spec)), file=sys.stderr)
    except BaseException:
        if downloaded:
            checkpoint.unlink(missing_ok=True)  # one that lies there later was put there by hand
        raise
    files = [path for path in (weights, decoder_path(weights)) if path.is_file()]
    about = {"from": url if downloaded else str(checkpoint), "checkpoint": found}
    write_json(record, about | {"files": {path.name: describe(path) for path in files}})
    if downloaded:
        checkpoint.unlink()


def _url(release: Release) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{release.file}" if mirror else release.url


def _download(url: str, checkpoint: Path) -> None:
    from vision_backbones.downloads import fetch

    unfinished = checkpoint.with_name(f"{checkpoint.name}.unfinished")
    fetch(url, unfinished)
    unfinished.replace(checkpoint)
    unfinished.with_suffix(".version").unlink(missing_ok=True)


def _empty_vit(spec: BackboneSpec) -> "nn.Module":
    """The ViT of a resolved spec without numbers, for its names and shapes, which the soft cap does not change."""
    import timm
    import torch

    with torch.device("meta"):
        vit = timm.create_model(spec.arch, img_size=spec.image_size, num_classes=0, **spec.arch_kwargs)
    vit.prune_intermediate_layers([len(vit.blocks) - 1], prune_head=True)
    return vit


def check_unchanged(weights: Path) -> None:
    """Compares fetched weights with what was written; weights of one's own, which have no record, pass.

    Raises:
        ValueError: They have changed.
    """
    record = record_path(weights)
    if not record.is_file():
        return
    remedy = f"delete {weights} to fetch it again, or {record} if the weights are right"
    files = read_json(record, remedy, "files")["files"]
    if not isinstance(files, dict) or not {weights.name} <= files.keys() <= {weights.name, decoder_path(weights).name}:
        raise ValueError(f"{record} cannot be read (its `files` are not {weights.name} and its decoder): {remedy}")
    for name, written in files.items():
        path, expected = weights.with_name(name), _sha256(written, record, remedy)
        if not path.is_file():
            raise ValueError(f"no file {path}, which was fetched with {weights.name}: {remedy}")
        about = path.stat()
        if (found := _digest(path, about.st_size, about.st_mtime_ns)) != expected:
            raise ValueError(
                f"{path} has changed since it was fetched: its sha256 is {found}, expected {expected}; {remedy}"
            )


def _sha256(about: object, record: Path, remedy: str) -> str:
    found = about.get("sha256") if isinstance(about, dict) else None
    if not isinstance(found, str):
        raise ValueError(f"{record} cannot be read (no sha256 in {about!r}): {remedy}")
    return found


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, computed once a process."""
    return describe(path)["sha256"]
