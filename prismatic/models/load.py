"""Loading trained VLMs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from prismatic.checkpoints.epoch import latest_checkpoint
from prismatic.checkpoints.old_names import current_name
from prismatic.checkpoints.step import STATE_JSON, load_tensors, problem_with, read_state, trained_parameters
from prismatic.models.lora import PARTS_FILE, relocated, with_adapters
from prismatic.models.lora import save_parts as save_parts  # where scripts look for it
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.pretrained import PrismaticPreTrainedModel
from prismatic.models.processing import PrismaticProcessor
from prismatic.models.reject_remote_code import check_parts_named, read_object, refuse_code
from prismatic.models.released import IDS, imported_folder, obtain
from prismatic.models.stages import as_stage
from prismatic.text.speech import speak
from vision_backbones.names import suggest
from vision_backbones.state_dicts import check_numbers

BUNDLED = {"miniature": Path(__file__).parent.parent / "miniature" / "assets" / "vlm"}  # models shipped with this
_loading: ContextVar[tuple[Path, ...]] = ContextVar("folders whose parts are being loaded", default=())


def find_model(path_or_name: str | Path) -> Path | None:
    """The folder that a path, a run, a bundled or an imported released model means, in this order; None for none.

    One that names code is refused.
    """
    places = [Path(path_or_name), Path("runs") / path_or_name]
    if path_or_name in BUNDLED:
        places.append(BUNDLED[path_or_name])
    if path_or_name in IDS:
        places.append(imported_folder(str(path_or_name)))
    return next((refuse_code(place) for place in places if place.exists()), None)


def load(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    merge: bool = True,
    base: str | None = None,
    device_map: str | dict | None = None,
    quantization_config: object = None,
    attn_implementation: str | dict | None = None,
) -> tuple[PrismaticForConditionalGeneration, PrismaticProcessor]:
    """A trained VLM and its processor, ready to `generate`.

    Args:
        path_or_name: run folder (its newest checkpoint is taken) or its name under `runs/`, checkpoint,
            `save_pretrained` folder, `miniature` (the bundled model), released model such as `prism-dinosiglip+7b`
            (fetched and imported when it is first loaded, see `prismatic.models.released`), or Hugging Face id.
        dtype: of the weights.
        merge: fold LoRA adapters into the weights; otherwise the peft model is given.
        base: where the LLM (or the run, ...) that LoRA adapters adapt lies now, if it was moved (see `relocated`).
        device_map: as `from_pretrained` of transformers takes it; likewise those that follow. For whole models.
        quantization_config: of bitsandbytes, torchao, ...
        attn_implementation: of the LLM.

    Raises:
        ValueError: nothing is found there, naming similar ones; a released model cannot be fetched; its configuration
            names Python code to run; or options of whole models are given for adapters or a step checkpoint.
    """
    path = find_model(path_or_name)
    given = {
        "device_map": device_map, "quantization_config": quantization_config, "attn_implementation": attn_implementation
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if path is None and path_or_name in IDS:
        path = refuse_code(obtain(str(path_or_name)))
    if path is None:
        return _load_from_hub(str(path_or_name), dtype, given)
    if (path / "checkpoints").is_dir():
        newest = latest_checkpoint(path)
        if newest is None:
            raise ValueError(f"the run {path} holds no checkpoint yet")
        path = refuse_code(newest)
    in_parts = (path / STATE_JSON).is_file() or (path / "adapter_config.json").is_file()
    if in_parts and given:
        raise ValueError(
            f"{path} is no whole model, which {', '.join(given)} is for: write one first (prismatic export)"
        )
    if (path / STATE_JSON).is_file():
        return _load_step(path, dtype, merge, base)
    if (path / "adapter_config.json").is_file():
        return _load_adapters(path, dtype, merge, base)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ValueError(f"{path} holds neither config.json nor checkpoints/, or no *.safetensors: give a saved model")
    return _from_pretrained(path, dtype, given)


def _from_pretrained(source: str | Path, dtype: torch.dtype, given: dict):
    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False} | given
    try:
        model = PrismaticForConditionalGeneration.from_pretrained(source, **options)
    except SafetensorError as error:
        raise ValueError(f"the weights in {source} are damaged ({error}): copy or download them again") from None
    if Path(source).is_dir() and not getattr(model, "is_quantized", False):
        _check_files(Path(source), model)
    plain = {name: p for name, p in model.named_parameters() if type(p.data) is torch.Tensor and not p.is_meta}
    check_numbers({name: p for name, p in plain.items() if p.is_floating_point()}, source)  # others are quantised
    return model, PrismaticProcessor.from_pretrained(source, trust_remote_code=False)


def _check_files(folder: Path, model: PrismaticForConditionalGeneration) -> None:
    """Raises ValueError for weights that are no floating-point numbers: they would be cast in silence."""
    parameters = dict(model.named_parameters())
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                kind = file.get_slice(name).get_dtype()
                if current_name(name) in parameters and kind[0] in "UIB" and kind != "BF16":
                    raise ValueError(f"weights {path} are damaged: {name} is {kind}, expected floating-point numbers")


def _load_from_hub(name: str, dtype: torch.dtype, given: dict):
    neighbours = [str(p) for folder in (Path(name).parent, Path("runs")) for p in folder.glob("*") if p.is_dir()]
    try:
        return _from_pretrained(name, dtype, given)
    except OSError as error:
        hint = suggest(
            name, [*neighbours, *BUNDLED, *IDS], otherwise="give a run, its id under runs/, or a Hugging Face id"
        )
        raise ValueError(f"no model called {name!r}, neither here nor on the hub: {hint}") from error


def _load_adapters(path: Path, dtype: torch.dtype, merge: bool, base: str | None):
    """Adapters hold what was trained; the rest is put together again from the parts that `save_parts` wrote."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    parts = path / PARTS_FILE
    if not parts.is_file() or not (path / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ValueError(f"{path} holds no {PARTS_FILE}, which says what its adapters adapt, or no safetensors of them")
    with _not_within_itself(path):
        model, _ = start(**relocated(check_parts_named(read_object(parts), parts), base, path), base=base)
    model = with_adapters(model, path)
    processor = PrismaticProcessor.from_pretrained(path, trust_remote_code=False)
    return (model.merge_and_unload() if merge else model).to(dtype).eval(), processor


OF_WHOLE_MODELS = (
    "device_map", "quantization_config", "attn_implementation", "state_dict", "key_mapping", "max_memory",
    "offload_folder",
)  # fmt: skip


def of_parts(folder: Path, dtype: torch.dtype | str | None = None, **options) -> PrismaticForConditionalGeneration:
    """The model that a folder of parts without weights means, for `from_pretrained` (see `lora.beside_adapters`).

    Raises:
        ValueError: options ask for more than a dtype, which only a whole model's folder can give.
    """
    dtype = options.pop("torch_dtype", dtype)
    if unknown := [name for name in OF_WHOLE_MODELS if options.get(name)]:
        raise ValueError(
            f"{', '.join(unknown)}: {folder} holds no weights, but names the parts they come from; write a whole model "
            "first (prismatic export) and load that"
        )
    parts = check_parts_named(read_object(folder / PARTS_FILE), folder / PARTS_FILE)
    model, _ = start(**relocated(parts, None, folder))
    dtype = getattr(torch, dtype) if dtype in ("float32", "bfloat16", "float16") else dtype
    return model.to(dtype if isinstance(dtype, torch.dtype) else torch.float32).eval()


PrismaticPreTrainedModel._of_parts = staticmethod(of_parts)


def _load_step(path: Path, dtype: torch.dtype, merge: bool, base: str | None):
    """A checkpoint that training continues from holds what is trained; the rest is put together again."""
    if problem := problem_with(path):
        raise ValueError(f"{path} is damaged: {problem}; give an older checkpoint")
    metadata = read_state(path)
    parts = relocated(check_parts_named(metadata["parts"], path), base, path)
    with _not_within_itself(path):
        model, processor = start_stage(parts, metadata["stage"], metadata["lora"], base=base)
    load_tensors(path, model)
    check_numbers(trained_parameters(model), path)
    model = model.merge_and_unload() if merge and metadata["stage"] == "lora" else model
    return model.to(dtype).eval(), processor


@contextmanager
def _not_within_itself(path: Path) -> Iterator[None]:
    """Raises ValueError where the parts of a folder lead back to it."""
    if (folder := path.resolve()) in _loading.get():
        raise ValueError(f"{path} is refused: its init_from leads back to the same adapters")
    token = _loading.set((*_loading.get(), folder))
    try:
        yield
    finally:
        _loading.reset(token)


def start_stage(
    parts: dict,
    stage: str,
    lora: dict,
    llm_later: bool = False,
    base: str | None = None,
    quantized: Callable[[torch.nn.Module], object] | None = None,
    llm_dtype: torch.dtype | None = None,
):
    """The model that a stage trains (`as_stage`) of the parts that `start` takes, and its processor.

    `llm_later` gives the LLM placeholders, to be filled when it is sharded; for parts of `build`. `quantized` makes a
    frozen LLM smaller, in place, before anything is put on it; `llm_dtype` is that in which it is read before.
    """
    from prismatic.models.build import build  # imports the model's module, which imports this one

    if llm_later:
        model, processor = build(**parts, llm_later=True)
    elif llm_dtype and "llm" in parts:
        model, processor = build(**parts, llm_dtype=llm_dtype)
    else:
        model, processor = start(**parts, base=base)
    if quantized:
        quantized(model.llm)
    return as_stage(model, stage, lora), processor


def start(init_from: str | None = None, prompt_style: str = "auto", base: str | None = None, **parts):
    """The model that a finetune starts from: an earlier run (see `load`), or built from parts (see `build`)."""
    if not init_from:
        from prismatic.models.build import build

        return build(**parts, prompt_style=prompt_style)
    model, processor = load(init_from, base=base)
    speak(model, processor, prompt_style)
    return model, processor


def __getattr__(name: str):
    """`build`, which scripts look for here: its module imports the model's, after which this one is imported."""
    if name != "build":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from prismatic.models.build import build

    return build
