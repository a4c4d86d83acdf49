"""Probes on disk: what `prismatic probe` keeps of a trained head, and asking it about other images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from eval.probing.backbone import ProbedBackbone
from eval.probing.data import SegmentationSet, centre_square, square_pixels
from eval.probing.features import Probe
from eval.probing.heads import check_head, make_head, tokens_for
from eval.probing.labels import check_labels
from vision_backbones import BackboneSpec
from vision_backbones.backbone_files import write_tensors
from vision_backbones.files import describe, read_json, write_json
from vision_backbones.names import suggest
from vision_backbones.safe_images import to_rgb
from vision_backbones.state_dicts import check_numbers
from vision_backbones.weights import find_weights

WEIGHTS, ABOUT = "head.safetensors", "head.json"
OUTCOME = "outcome.json"  # scores of a finished probe
FIELDS = {  # of ABOUT, with their types
    "backbone": str, "spec": dict, "weights": dict, "dataset": str, "classes": list, "labels": str, "head": str,
    "skip_blocks": int, "full_finetune": bool, "precision": str, "epoch": int, "file": dict,
}  # fmt: skip
SIZES = ("head_width", "head_depth")  # of ABOUT, since there are such; None for those of before
AGAIN = "probe again with another --run_id"


def probe_folder(run_dir: Path, backbone: str, labels: str) -> Path:
    """The folder of one probe in a run: `RUN/BACKBONE/LABELS`."""
    return run_dir / backbone.replace("/", "_").replace(":", "_") / labels


def save_probe(
    folder: Path, config, probe: Probe, dataset: SegmentationSet, backbone: str, labels: str, *, epoch: int
) -> None:
    """Writes `head.safetensors` and `head.json`, from which `load_probe` rebuilds a probe; each file all or nothing.

    Args:
        folder: Is there.
        config: The `ProbeConfig` it was trained with.
        probe: Its head is written, and its backbone if that was trained too or has random weights.
        dataset: Whose classes it knows.
        backbone: The name it was asked for by.
        labels: Their kind.
        epoch: After which it is saved, from 1.
    """
    spec, parts = probe.backbone.spec, {"head": probe.head}
    own = probe.finetune or not config.pretrained
    if own:
        parts["backbone"] = probe.backbone
    tensors = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors, {})
    about = {"backbone": backbone, "spec": spec.to_dict(), "weights": {} if own else _files(spec)}
    about |= {"dataset": dataset.name, "classes": list(dataset.classes), "labels": labels, "head": config.head}
    about |= {name: getattr(config, name) for name in (*SIZES, "pretrained")}
    about |= {"skip_blocks": config.skip_blocks, "full_finetune": probe.finetune, "precision": config.precision}
    write_json(folder / ABOUT, about | {"epoch": epoch, "file": describe(folder / WEIGHTS)})


class SavedProbe:
    """A trained probe and what it says of images; made by `load_probe`.

    Attributes:
        backbone: Name of the backbone.
        dataset: Name of the data set it was trained on.
        labels: Their kind.
        classes: Names, in the order of the probabilities; 0 belongs to none.
        grid: Rows and columns of the answer: those of the patches, 1 x 1 for `global-union`.
        patch: Side of a patch in pixels of `square`.
        probe: The module, as `eval.probing.evaluate` takes it.
    """

    def __init__(self, probe: Probe, about: dict):
        self.probe = probe.requires_grad_(False).eval()
        self.backbone, self.dataset, self.labels = about["backbone"], about["dataset"], about["labels"]
        self.classes = tuple(about["classes"])
        self.grid = (1, 1) if self.labels == "global-union" else probe.backbone.grid
        self.patch = probe.backbone.patch
        self._half = about["precision"] == "bf16"

    def square(self, image: Image.Image) -> Image.Image:
        """What is seen of an image, RGB: its largest centred square at the backbone's resolution."""
        return centre_square(to_rgb(image), self.probe.backbone.spec.image_size)

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Probabilities `[B, rows, columns, classes]`, float32 on CPU; rows and columns are 1 for `global-union`.

        Of `majority` labels they sum to 1 over classes; of others each class has its own.

        Raises:
            ValueError: No image is given.
        """
        if not images:
            raise ValueError("no images: give a list of one or more PIL images")
        spec, device = self.probe.backbone.spec, next(self.probe.parameters()).device
        pixels = torch.stack([square_pixels(self.square(image), spec) for image in images]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._half):
            logits = self.probe({"pixel_values": pixels}).cpu()
        found = logits.softmax(-1) if self.labels == "majority" else logits.sigmoid()
        return found.view(len(images), *self.grid, len(self.classes))


def load_probe(folder: Path | str, device: str | torch.device = "cpu") -> SavedProbe:
    """A probe that `prismatic probe` saved: its last epoch's.

    Args:
        folder: `RUN/BACKBONE/LABELS`, or a run or a backbone's folder in it that holds a single probe.
        device: To put it on.

    Raises:
        ValueError: There is no probe or more than one; files are damaged or have changed; or weights of its backbone
            are not found.
    """
    folder = _one_probe(Path(folder).expanduser())
    about = _read_about(folder)
    spec, own = about["spec"], about["full_finetune"] or not about["pretrained"]
    keep = tokens_for(about["head"], about["labels"])
    if not own and (changed := [part for part, file in _files(spec).items() if about["weights"].get(part) != file]):
        raise ValueError(
            f"the weights of {', '.join(changed)} are not those that the probe {folder} was trained on: restore them, "
            f"or {AGAIN}"
        )
    backbone = ProbedBackbone(spec, keep, skip_blocks=about["skip_blocks"], pretrained=not own)
    sizes = {"width": about["head_width"], "depth": about["head_depth"]}
    head = make_head(about["head"], about["labels"], backbone, len(about["classes"]), **sizes)
    dtype = torch.bfloat16 if about["precision"] == "bf16" else torch.float32
    probe = Probe(backbone, head, finetune=about["full_finetune"], dtype=dtype)
    _fill({"head": head, "backbone": backbone} if own else {"head": head}, folder / WEIGHTS, about["file"])
    return SavedProbe(probe.to(device), about)


def check_probe(folder: Path | str) -> None:
    """Raises ValueError where `load_probe` would find no probe, or more than one; reads no weights."""
    _read_about(_one_probe(Path(folder).expanduser()))


def _files(spec: BackboneSpec) -> dict[str, dict]:
    """Size and digest of the backbone's weights files, by part; weights of timm have none."""
    found = {part.id: find_weights(part) for part in spec.parts or (spec,)}
    return {part: describe(path) for part, path in found.items() if path}


def _one_probe(folder: Path) -> Path:
    if not folder.is_dir():
        near = sorted(path.name for path in folder.parent.glob("[!.]*/"))
        hint = suggest(folder.name, near) if near else "give a run of `prismatic probe`, or RUN/BACKBONE/LABELS in it"
        raise ValueError(f"no folder {folder}: {hint}")
    found = [path.parent for depth in ("", "*/", "*/*/") for path in sorted(folder.glob(f"{depth}{ABOUT}"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{folder} holds {len(found)} probes: give one of {', '.join(map(str, found))}")
    if any(path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}{OUTCOME}")):
        raise ValueError(f"{folder} was probed by an earlier version, which kept scores but no head: {AGAIN}")
    raise ValueError(f"{folder} holds no {ABOUT} of a finished probe: give a run of `prismatic probe`")


def _read_about(folder: Path) -> dict:
    path = folder / ABOUT
    about = dict.fromkeys(SIZES) | {"pretrained": True} | read_json(path, AGAIN, *FIELDS)
    wrong = [name for name, kind in (FIELDS | {"pretrained": bool}).items() if type(about[name]) is not kind]
    wrong += [name for name in SIZES if about[name] is not None and (type(about[name]) is not int or about[name] < 1)]
    if wrong or not all(isinstance(name, str) for name in about["classes"]):
        raise ValueError(f"{path} is damaged: {wrong[0] if wrong else 'classes'} is of another type; {AGAIN}")
    check_labels(about["labels"]), check_head(about["head"], about["labels"], *(about[name] for name in SIZES))
    try:
        about["spec"] = BackboneSpec.from_dict(about["spec"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: its spec cannot be read ({error}); {AGAIN}") from error
    return about


def _fill(modules: dict[str, torch.nn.Module], path: Path, written: dict) -> None:
    """Loads the weights of a probe, strictly, from a file of the size and digest that were written."""
    try:
        intact = describe(path) == written
        tensors = load_file(path) if intact else {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {AGAIN}") from error
    if not intact:
        raise ValueError(f"{path} is damaged: it is not as it was written; restore it, or {AGAIN}")
    check_numbers(tensors, path)
    try:
        for part, module in modules.items():
            own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
            module.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to a different probe: {error}") from error
