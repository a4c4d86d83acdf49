"""LoRA adapters on the LLM: added, written beside what they adapt, put back strictly."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from prismatic.checkpoints.epoch import PARTS_FILE
from prismatic.checkpoints.old_names import KEY_MAPPING, current_name
from vision_backbones.files import write_json
from vision_backbones.state_dicts import check_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prismatic.models.modeling import PrismaticForConditionalGeneration

MOVABLE = ("init_from", "llm", "vision_backbone")  # arguments of `start` that may lie on this disk
# peft looks at what adapters adapt before it is written beside them.
warnings.filterwarnings("ignore", "Could not find a config file in .* - will assume that the vocabulary", UserWarning)
LLM, OLD_LLM = r"model\.language_model\.", r"llm\."  # what adapters are put on
BASE = "base"  # a folder beside adapters: what they adapt

CARD = """\
---
library_name: peft
pipeline_tag: image-text-to-text
tags: [prismatic, lora]
---

LoRA adapters, and a projector, of a vision-language model that is put together from these parts:

```json
{settings}
```

```python
import prismatic

model, processor = prismatic.load("this folder")  # adapters merged; merge=False keeps them
```

With peft: `AutoPeftModelForCausalLM.from_pretrained("this folder")` after `import prismatic`, as long as
the folder is where `base_model_name_or_path` in adapter_config.json says.
"""


def add_lora(
    model: "PrismaticForConditionalGeneration", *, rank: int, alpha: int, dropout: float, targets: Sequence[str] = ()
):
    """The model wrapped by peft: adapters on layers of the LLM, the projector trained in full.

    Args:
        model: a VLM.
        rank: of the adapters.
        alpha: they are scaled by alpha / rank.
        dropout: on their input.
        targets: names of layers; none takes all linear layers of the LLM's blocks, experts included.

    Raises:
        ValueError: the LLM has no layer of such a name, or experts are to have dropout.
    """
    from peft import LoraConfig, get_peft_model

    layers, experts = linear_layers(model.llm)
    names = sorted({name.rpartition(".")[2] for name in layers})
    if unknown := [target for target in targets if not any(f".{n}".endswith(f".{target}") for n in layers)]:
        raise ValueError(
            f"--lora.targets {', '.join(unknown)}: this LLM ({model.llm.config.model_type}) has no such layers, but "
            f"{', '.join(names)}; leave the setting empty to adapt them all"
        )
    targeted, whole = rf"{LLM}.*\.({'|'.join(map(re.escape, targets or names))})", ["projector"]
    options = {"target_modules": targeted, "modules_to_save": whole}
    if experts and not targets:
        options["target_parameters"] = [f"model.language_model.{name.partition('.')[2]}" for name in experts]
        if dropout:
            raise ValueError(f"--lora.dropout is {dropout}: experts' adapters have none; set 0, or name --lora.targets")
    options["task_type"] = "CAUSAL_LM"  # so that peft's AutoPeftModelForCausalLM reads them
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **options))


def linear_layers(llm: "PreTrainedModel") -> tuple[list[str], list[str]]:
    """Names of the linear layers of an LLM but its head, and of the stacked matrices of its experts."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = llm.get_output_embeddings()
    layers = [name for name, m in llm.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    experts = [
        f"{name}.{key}"
        for name, module in llm.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1 and not isinstance(module, nn.Conv1d)
    ]
    return layers, experts


def lasting(parts: dict) -> dict:
    """The arguments of `start` as they hold in any working directory: absolute paths, the text of a chat template."""
    from prismatic.models.llm import list_llms
    from prismatic.text.speech import template_of
    from vision_backbones import list_backbones

    known = {*list_llms(), *list_backbones(), "miniature"}
    places = {"llm": [""], "vision_backbone": [""], "init_from": ["", "runs"]}  # where each is looked for

    def absolute(name: str, value: str) -> str:
        there = [Path(place, value) for place in places[name] if Path(place, value).exists()]
        return str(there[0].absolute()) if there and value not in known else value

    parts = {name: absolute(name, value) if name in places and value else value for name, value in parts.items()}
    return parts | {"prompt_style": template_of(parts.get("prompt_style", "auto")) or "auto"}


def relocated(parts: dict, base: str | None, where: object) -> dict:
    """The arguments of `start` with what was moved in its new place.

    Args:
        parts: as `lasting` made them: what lay on this disk is an absolute path.
        base: where what adapters adapt lies now, if it was moved: the one that is gone, or `PART=PATH` of several,
            separated by commas.
        where: names the adapters in messages.

    Raises:
        ValueError: a part is gone and has no new place, or the new place is not there.
    """
    found, alone = {}, base
    if base and base.partition("=")[0] in MOVABLE:  # else a path, whatever it holds
        pieces = re.split(rf",(?=(?:{'|'.join(MOVABLE)})=)", base)
        found, alone = dict(piece.split("=", 1) for piece in pieces), None
    for name in MOVABLE:
        if not _is_gone(parts.get(name)):
            continue  # a name that is not gone here may be further in, where a run began with another
        place = found.get(name, alone)
        if place is None:
            raise ValueError(
                f"{where} holds adapters of {parts[name]} ({name}), which no longer exists: restore it, or give "
                f"its current path: --base {name}=PATH (in Python prismatic.load(..., base=...))"
            )
        if not Path(place).exists():
            raise ValueError(f"--base {place} does not exist; {where} needs what {parts[name]} was")
        parts, alone = parts | {name: str(Path(place).absolute())}, None
    return parts


def _is_gone(value: str | None) -> bool:
    return bool(value) and Path(value).is_absolute() and not Path(value).exists()


def save_parts(folder: Path, parts: dict) -> None:
    """Writes beside LoRA adapters what they adapt: the arguments of `start`."""
    write_json(folder / PARTS_FILE, parts)


def beside_adapters(model, parts: dict, folder: Path) -> dict[str, dict | str]:
    """Contents of the files that go with adapters to `folder`, by name; peft is told what the adapters adapt.

    `base/` is a model folder without weights, which `from_pretrained` puts together from its parts: so peft's own
    classes find what they load adapters onto.
    """
    config = model.get_base_model().config.to_dict() | {"architectures": [type(model.get_base_model()).__name__]}
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = str((folder / BASE).absolute())
        adapter.task_type, adapter.auto_mapping = "CAUSAL_LM", None  # those of earlier versions have another
    return {
        PARTS_FILE: parts, f"{BASE}/config.json": config, f"{BASE}/{PARTS_FILE}": parts,
        "README.md": CARD.format(settings=json.dumps(parts, indent=1)),
    }  # fmt: skip


def _as_today(folder: Path) -> dict:
    """Arguments with which peft reads adapters that name the LLM's layers as they were called before."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    if not str(config.target_modules).startswith(OLD_LLM):
        return {}
    config.target_modules = LLM + config.target_modules.removeprefix(OLD_LLM)
    config.target_parameters = [current_name(name) for name in config.target_parameters or []] or None
    return {"config": config, "key_mapping": KEY_MAPPING}


def with_adapters(model: "PrismaticForConditionalGeneration", folder: Path):
    """The model wrapped by peft with the adapters that `save_pretrained` wrote to a folder.

    Raises:
        ValueError: they are not those of this model: missing, unexpected, of another shape, or no finite numbers.
    """
    from peft import PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict

    file = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        adapted = PeftModel.from_pretrained(model, folder, **_as_today(folder))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file} does not hold the adapters of this model: {str(error)[:400]}") from None
    stored = {current_name(name): tensor for name, tensor in load_file(file).items()}
    wanted = get_peft_model_state_dict(adapted).keys()
    if stored.keys() != wanted:
        sides = {"missing": sorted(wanted - stored.keys()), "unexpected": sorted(stored.keys() - wanted)}
        listed = "; ".join(f"{side}: {', '.join(keys[:3])} ({len(keys)})" for side, keys in sides.items() if keys)
        raise ValueError(f"{file} does not hold the adapters of this model: {listed}")
    check_numbers(stored, file)
    return adapted
