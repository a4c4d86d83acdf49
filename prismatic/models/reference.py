"""Checkpoints of the reference implementation (Prismatic VLMs and its locality-alignment fork) as models of ours.

Its run folders hold `config.json` (or `config.yaml`) and `checkpoints/*.pt`, each of them
`{"model": {"projector": {...}, "llm_backbone": {...}, "vision_backbone": {...}}}` with what was trained: the projector
in stage align, also the LLM in stage finetune, all three in stage full-finetune. The rest is what training began with.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prismatic.checkpoints.epoch import save_model
from prismatic.checkpoints.old_names import current_name
from prismatic.models.build import build_processor, check_parts
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.llm import get_llm_spec, list_llms, llm_config, load_llm, load_tokenizer
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.projectors import TAIL_BLOCKS
from prismatic.models.vocabulary import grow_vocabulary
from prismatic.text.prompts import IMAGE_TOKEN, chat_template
from vision_backbones import BackboneSpec, create_backbone
from vision_backbones.checkpoints import unpickle
from vision_backbones.state_dicts import HEAD
from vision_backbones.vit import build_vit

LATEST = "latest-checkpoint.pt"
DECODER = {"act_layer": "gelu"}  # its pretrained decoder computes GELU, whatever the ViT was trained with
MODULES = ("projector", "llm_backbone", "vision_backbone")
PREFIXES = {
    "projector.projector.": "projector.",
    "llm_backbone.llm.": "llm.",
    "vision_backbone.featurizer.": "vision_backbone.vit.",
    "vision_backbone.dino_featurizer.": "vision_backbone.parts.0.vit.",
    "vision_backbone.clip_featurizer.": "vision_backbone.parts.1.vit.",
    "vision_backbone.siglip_featurizer.": "vision_backbone.parts.1.vit.",
}
SETTINGS = {  # its names and ours
    "vision_backbone_id": "vision_backbone",
    "llm_backbone_id": "llm",
    "arch_specifier": "projector",
    "image_resize_strategy": "image_resize_strategy",
}


def our_name(name: str) -> str:
    """Our name of a reference parameter: `lm_head.weight` of `llm_backbone.llm.lm_head.weight`."""
    return current_name(_name_in_part(name))


def _name_in_part(name: str) -> str:
    """Its name with the part in front: `llm.norm.weight` of `llm_backbone.llm.norm.weight`."""
    for theirs, own in PREFIXES.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return name


def import_reference(
    source: Path,
    out: Path,
    *,
    preset: dict[str, Any] | None = None,
    vision_backbone: str | None = None,
    llm: str | None = None,
    projector: str | None = None,
    image_resize_strategy: str | None = None,
) -> str:
    """Writes a reference checkpoint as a `save_pretrained` folder in float32, and says where its weights come from.

    Args:
        source: run folder (`latest-checkpoint.pt` is taken) or a `.pt` file, its run's configuration two folders up.
        out: new folder.
        preset: settings of a named model, in place of the run's configuration.
        vision_backbone: id or path, in place of the one named there; likewise those that follow.
        llm: known id, Hugging Face id or folder; needs no weights where the checkpoint holds them. Prompts stay those
            of the LLM that was named.
        projector: exact name.
        image_resize_strategy: "resize-naive" if nothing names one.

    Raises:
        ValueError: `out` exists, `source` is no such checkpoint or would run code, the parts are unknown or do not fit
            it, or weights that it lacks cannot be found.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    file, run = find_checkpoint(source)
    named = preset or (read_settings(run) if run else {})
    given = {"vision_backbone": vision_backbone, "llm": llm, "projector": projector}
    given["image_resize_strategy"] = image_resize_strategy
    parts = {"image_resize_strategy": "resize-naive"} | named | {k: v for k, v in given.items() if v is not None}
    if missing := [name for name in given if name not in parts]:
        raise ValueError(
            f"{file} does not say which {', '.join(missing)} it was trained with, nor does a config.json beside its "
            "checkpoints/: give --model NAME, or --vision_backbone, --llm and --projector"
        )
    state = read_checkpoint(file)
    spec = check_parts(*(parts[name] for name in given), pretrained=False)
    model, tokenizer = _assemble(state, spec, parts, named.get("llm", parts["llm"]), file)
    save_model(model, build_processor(model, tokenizer), out)
    told = [f"{out}: {file.name}, weights in float32"]
    for name, part in (("projector", "projector"), ("llm", "llm"), ("vision_backbone", "vision_backbone")):
        count = sum(key.startswith(f"{part}.") for key in state)
        told.append(f"  {name} {parts[name]}: {f'{count} tensors of the checkpoint' if count else 'pretrained'}")
    return "\n".join(told)


def find_checkpoint(source: Path) -> tuple[Path, Path | None]:
    """The checkpoint that a file or run folder means, and the run folder if there is one.

    Raises:
        ValueError: there is none.
    """
    if source.is_file():
        run = source.absolute().parent.parent  # not resolved: hub caches hold links
        return source, run if any((run / name).is_file() for name in ("config.json", "config.yaml")) else None
    if not source.is_dir():
        raise ValueError(f"no file or folder {source}: give a .pt file of the reference, or its run folder")
    found = sorted((source / "checkpoints").glob("*.pt"))
    if not found:
        raise ValueError(f"{source} holds no checkpoints/*.pt: give a run folder of the reference, or a .pt file")
    latest = source / "checkpoints" / LATEST
    return (latest if latest in found else found[-1]), source


def read_settings(run: Path) -> dict[str, str]:
    """The parts that a run folder's `config.json` or `config.yaml` names, under our names of the settings.

    Raises:
        ValueError: it has neither, or they are not a run's of the reference.
    """
    file = next((run / name for name in ("config.json", "config.yaml") if (run / name).is_file()), None)
    if file is None:
        return {}
    try:
        content = (json.loads if file.suffix == ".json" else yaml.safe_load)(file.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    model = content.get("model") if isinstance(content, dict) else None
    absent = [name for name in SETTINGS if not isinstance(model, dict) or not isinstance(model.get(name), str)]
    if absent:
        raise ValueError(
            f"{file} is not a configuration of a reference run: its `model` lacks {', '.join(absent)}; give "
            "--model NAME, or move the file away and give --vision_backbone, --llm and --projector"
        )
    named = {own: model[theirs] for theirs, own in SETTINGS.items()}
    return named | {"projector": named["projector"].rpartition("+")[2]}  # "no-align+" says how it was trained


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The weights in a reference checkpoint in float32, under our names; runs no code in it, and maps what is float32.

    Raises:
        ValueError: it cannot be read, would run code, or has another layout.
    """
    content = unpickle(file)
    expected = "expected {'model': {'projector': tensors by name, 'llm_backbone': ..., 'vision_backbone': ...}}"
    modules = content.get("model") if isinstance(content, dict) else None
    if not isinstance(modules, dict):
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file} is not a checkpoint of the reference: it holds {found}; {expected}")
    if "projector" not in modules or not modules.keys() <= set(MODULES):
        found = ", ".join(map(str, list(modules)[:6])) or "nothing"
        raise ValueError(f"{file} is not a checkpoint of the reference: its 'model' holds {found}; {expected}")
    state = {}
    for module, tensors in modules.items():
        if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
            raise ValueError(f"{file}: its '{module}' is not a dict of tensors; {expected}")
        if not tensors:
            raise ValueError(f"{file}: its '{module}' is empty: it was cut down or written by another program")
        state |= {_name_in_part(f"{module}.{name}"): tensor.float() for name, tensor in tensors.items()}
    if strange := [name for name in state if name.startswith("llm_backbone.")]:
        raise ValueError(f"{file}: unexpected tensors {', '.join(strange[:5])}: those of an LLM begin with llm.")
    return state


def _assemble(state: dict[str, Tensor], spec: BackboneSpec, parts: dict[str, str], spoken: str, file: Path):
    """The model and its tokenizer; what `state` lacks is pretrained. `spoken` is the LLM whose prompts are used."""
    of = {module: _within(state, module) for module in ("projector", "llm", "vision_backbone")}
    tokenizer = load_tokenizer(parts["llm"])
    if spoken != parts["llm"] and spoken in list_llms() and (style := get_llm_spec(spoken).prompt_style):
        tokenizer.chat_template = chat_template(style)
    backbone = create_backbone(
        parts["vision_backbone"],
        pretrained=not of["vision_backbone"],
        image_resize_strategy=parts["image_resize_strategy"],
        tail_blocks=TAIL_BLOCKS if parts["projector"] == "truncated" else 0,
    )
    if of["llm"]:
        llm = _llm_of(of["llm"], parts["llm"], len(tokenizer), file)
    else:
        llm = load_llm(parts["llm"], dtype=torch.float32)
    grow_vocabulary(llm, len(tokenizer))
    attention = llm.config._attn_implementation
    config = PrismaticConfig(
        text_config=llm.config,
        vision_config=backbone.spec.to_dict(),
        image_size=backbone.image_size,
        image_resize_strategy=parts["image_resize_strategy"],
        projector=parts["projector"],
        projector_config=DECODER if parts["projector"] == "pretrained-decoder" else None,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    model = PrismaticForConditionalGeneration(config, llm=llm, vision_backbone=backbone).float().eval()
    model.llm.set_attn_implementation(attention)  # cleared by the composite configuration, as in `build`
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id

    _fit(model.projector, of["projector"], f"projector in {file}", f"--projector {parts['projector']}")
    if of["vision_backbone"]:
        asked = f"--vision_backbone {parts['vision_backbone']}"
        _fit(model.vision_backbone, of["vision_backbone"], f"vision backbone in {file}", asked, unused=_unused(spec))
    return model, tokenizer


def _within(state: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{module}."): t for name, t in state.items() if name.startswith(f"{module}.")}


def _llm_of(found: dict[str, Tensor], id_or_path: str, tokens: int, file: Path):
    """The LLM with the checkpoint's weights, and as many words as its embedding has rows."""
    config = llm_config(id_or_path)
    with init_empty_weights():  # buffers are real: no checkpoint holds those of rotary embeddings
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        embedding = llm.get_input_embeddings().weight
        name = next(name for name, parameter in llm.named_parameters() if parameter is embedding)
        rows = len(found[name]) if name in found else config.vocab_size
        if rows < tokens - 1:  # the reference knows no <image>
            raise ValueError(
                f"the LLM in {file} knows {rows} tokens, the tokenizer of --llm {id_or_path} has {tokens - 1}: it was "
                "trained with another LLM"
            )
        config.vocab_size = rows
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = {name: tensor for name, tensor in found.items() if not name.endswith("rotary_emb.inv_freq")}
    _fit(llm, found, f"LLM in {file}", f"--llm {id_or_path}", optional=llm.all_tied_weights_keys)
    llm.tie_weights()
    return llm.eval()


def _unused(spec: BackboneSpec) -> set[str]:
    """Names of all parameters of the ViTs, of which the features may not need the last ones."""
    with torch.device("meta"):
        vits = [build_vit(part) for part in spec.parts or (spec,)]
    places = [f"parts.{i}.vit." for i in range(len(vits))] if spec.parts else ["vit."]
    return {place + name for place, vit in zip(places, vits, strict=True) for name in vit.state_dict()}


def _fit(
    module: nn.Module, found: dict[str, Tensor], what: str, asked: str, *,
    unused: Iterable[str] = (), optional: Iterable[str] = (),
) -> None:  # fmt: skip
    """Puts `found` in the place of a module's weights, strictly, but for `unused` names and `optional` weights.

    Raises:
        ValueError: names or shapes differ; counts them, shows the first few.
    """
    own = module.state_dict()
    found = {name: tensor for name, tensor in found.items() if name in own or not _spare(name, unused)}
    other = [name for name in own if name in found and found[name].shape != own[name].shape]
    missing = [name for name in own if name not in found and name not in optional]
    unexpected = [name for name in found if name not in own]
    if problems := other + missing + unexpected:
        shown = "; ".join(
            f"{name} is {list(found[name].shape) if name in found else 'missing'}, expected "
            f"{list(own[name].shape) if name in own else 'none'}"
            for name in problems[:4]
        )
        raise ValueError(
            f"the {what} does not fit {asked}: {len(other)} tensors of another shape, {len(missing)} missing, "
            f"{len(unexpected)} unexpected ({shown}): name the parts that it was trained with"
        )
    module.load_state_dict(found, strict=False, assign=True)


def _spare(name: str, unused: Iterable[str]) -> bool:
    """Whether a ViT's parameter only serves what comes after the features."""
    return bool(unused) and (name in unused or name.rpartition("vit.")[2].startswith(HEAD))
