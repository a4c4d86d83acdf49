"""Backbones by name: register them, list them, look them up."""

import dataclasses
import importlib
import json
import os
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

from vision_backbones.names import suggest
from vision_backbones.spec import BackboneSpec
from vision_backbones.weights import read_header

ENTRY_POINTS = "vision_backbones"
BACKBONE_FILE = "backbone.safetensors"  # in a checkpoint of recipes/align.py
_specs: dict[str, BackboneSpec] = {}
_entry_points_loaded = False


def register(spec: BackboneSpec) -> BackboneSpec:
    """Makes `spec` known under its id, and returns it back.

    Raises:
        ValueError: If the id is taken, or begins with the reserved `timm:`.
    """
    if spec.id.startswith("timm:"):
        raise ValueError(f"backbone id '{spec.id}': ids beginning with 'timm:' are reserved for timm's own models")
    if spec.id in _specs:
        raise ValueError(f"backbone id '{spec.id}' is already registered (as {_specs[spec.id].arch}): choose another")
    _specs[spec.id] = spec
    return spec


def list_backbones() -> list[str]:
    """Returns every registered id, in order of registration; imports neither torch nor timm."""
    _load_entry_points()
    return list(_specs)


def get_spec(id: str) -> BackboneSpec:
    """Returns the spec of a registered id, of `timm:<any timm id>`, of an aligned backbone on disk, or of `A+B`.

    `NAME@last` and `NAME@second-to-last` are NAME with features read from that block.

    On disk means a run folder of recipes/align.py (its best checkpoint, or else its last), one of its checkpoints, or
    a safetensors file with a spec in its metadata; `spec.weights` is then that file. A registered id goes before a
    folder of the same name. `A+B` (or more) fuses such backbones at the image size of the first.

    Raises:
        ValueError: If the name is unknown (names the closest known ones), or the path holds no backbone.
    """
    _load_entry_points()
    if id in _specs:
        return _specs[id]
    if (path := Path(id).expanduser()).exists():
        return _spec_on_disk(path)
    if "+" in id:
        return _fused_spec(id)
    if "@" in id:
        name, _, features = id.rpartition("@")
        return dataclasses.replace(get_spec(name), id=id, features=features)
    if id.startswith("timm:"):
        return _timm_spec(id)
    near = suggest(id, _specs, otherwise="")
    raise ValueError(
        f"unknown vision backbone '{id}'{near and f': {near}'}; `python -m vision_backbones list` shows all, "
        "'timm:<timm id>' takes any of timm, 'A+B' fuses two, a path takes a run of recipes/align.py (none is there), "
        "--plugins imports registrations of your own"
    )


def resolve_spec(id_or_spec: str | BackboneSpec, *, image_size: int | None = None) -> BackboneSpec:
    """Returns the spec with timm's values filled in and `image_size` (pixels), if given, put in place of its own.

    Raises:
        ValueError: If a name is unknown or `image_size` is not positive.
    """
    spec = get_spec(id_or_spec) if isinstance(id_or_spec, str) else id_or_spec
    if image_size is not None and image_size != spec.image_size:
        # A border is a property of the shipped resolution, not of the ViT.
        spec = dataclasses.replace(spec, image_size=image_size, allow_border=False)
    if spec.parts:
        shared = {"image_size": spec.image_size, "allow_border": spec.allow_border}
        parts = tuple(resolve_spec(dataclasses.replace(part, **shared)) for part in spec.parts)
        return dataclasses.replace(spec, parts=parts)
    names = ("image_size", "mean", "std", "interpolation", "crop_pct")
    missing = [name for name in names if getattr(spec, name) is None]
    return dataclasses.replace(spec, **{n: _timm_value(spec.arch, n) for n in missing}) if missing else spec


def import_plugins(names: list[str]) -> None:
    """Imports modules, by dotted name, that register backbones; the working directory is searched last.

    Raises:
        ValueError: If a module is not found.
    """
    # In an editable install the finder of these packages comes after sys.path: folders called eval would win over ours.
    for folder in (str(Path(__file__).resolve().parents[1]), os.getcwd()):
        if folder not in sys.path:
            sys.path.append(folder)
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the plugin was found; something it needs was not
            raise ValueError(
                f"no plugin module '{name}' (looked in the working directory and on sys.path): give a dotted module "
                "name without .py, and install the package or set PYTHONPATH to the folder that holds it"
            ) from error


def _load_entry_points() -> None:
    """Imports, once, the modules that installed packages name under the entry-point group `vision_backbones`."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # a broken package elsewhere must not take the catalog away
            warnings.warn(f"vision_backbones plugin '{point.name}' ({point.value}) failed: {error}", stacklevel=3)


def _spec_on_disk(path: Path) -> BackboneSpec:
    file = path
    if path.is_dir():
        candidates = [path / "checkpoints" / name / BACKBONE_FILE for name in ("best", "last")] + [path / BACKBONE_FILE]
        timms = path / "model.safetensors"  # of a folder of `timm_folder`; whole VLMs have a file of the name, too
        candidates += [timms] if timms.is_file() and "spec" in read_header(timms)[1] else []
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            raise ValueError(
                f"{path} holds no vision backbone: looked for {', '.join(map(str, candidates))}; give a run of "
                "recipes/align.py or one of its checkpoints (a finetuned VLM is none)"
            )
    if file.suffix != ".safetensors" or "spec" not in (metadata := read_header(file)[1]):
        raise ValueError(
            f"{file} does not say which backbone it is (safetensors with `spec` in the metadata): convert it with "
            f"`python -m vision_backbones convert {file} OUT.safetensors --backbone ID`, or register "
            f"BackboneSpec(..., weights='{file}')"
        )
    try:
        spec = BackboneSpec.from_dict(json.loads(metadata["spec"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the `spec` in the metadata of {file} cannot be read: {error}") from error
    return dataclasses.replace(spec, weights=str(file))


def _fused_spec(id: str) -> BackboneSpec:
    names = [name.strip() for name in id.split("+")]
    if not all(names):
        raise ValueError(f"'{id}' has a '+' with no backbone beside it: join ids as in clip-vit-b+dino-vit-b")
    parts = [get_spec(name) for name in names]
    if fused := [part.id for part in parts if part.parts]:
        raise ValueError(f"'{fused[0]}' in '{id}' is fused already: name its parts, each joined to the next by '+'")
    first = resolve_spec(parts[0])
    return BackboneSpec(
        id, parts=tuple(parts), image_size=first.image_size, family="fused", allow_border=first.allow_border
    )


def _timm_spec(id: str) -> BackboneSpec:
    arch = id.removeprefix("timm:")
    size = _timm_value(arch, "image_size")
    notes = _timm_config(arch).notes or ()
    if "quickgelu" not in arch and any("QuickGELU" in note for note in notes):
        warnings.warn(
            f"{arch} was trained with QuickGELU but is built with GELU: use timm's quickgelu id", stacklevel=3
        )
    return BackboneSpec(id, arch=arch, image_size=size, family="timm", allow_border=True)


def _timm_config(arch: str):
    import timm

    try:
        config = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    except RuntimeError:  # a known architecture with an unknown tag
        config = None
    if config is None:
        known = timm.list_models(pretrained=True) + timm.list_models()
        near = suggest(arch, known, otherwise="timm.list_models() has all")
        raise ValueError(f"timm {timm.__version__} has no model '{arch}': {near}")
    return config


def _timm_value(arch: str, name: str):
    config = _timm_config(arch)
    return config.input_size[-1] if name == "image_size" else getattr(config, name)
