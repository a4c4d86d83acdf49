"""LoRA adapters on the LLM: added, written beside what they adapt, put back strictly."""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from vision_backbones.files import write_json
from vision_backbones.weights import check_numbers

if TYPE_CHECKING:
    from prismatic.models.modeling import PrismaticForConditionalGeneration

PARTS_FILE = "prismatic_parts.json"  # beside LoRA adapters: the arguments of `prismatic.models.load.start`


def add_lora(model: "PrismaticForConditionalGeneration", *, rank: int, alpha: int, dropout: float, targets: list[str]):
    """The model wrapped by peft: adapters on the LLM's layers called `targets`, the projector trained in full."""
    from peft import LoraConfig, get_peft_model

    targeted, whole = rf"llm\..*\.({'|'.join(targets)})", ["projector"]
    options = {"target_modules": targeted, "modules_to_save": whole}
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **options))


def save_parts(folder: Path, parts: dict) -> None:
    """Writes beside LoRA adapters what they adapt: the arguments of `start`."""
    write_json(folder / PARTS_FILE, parts)


def with_adapters(model: "PrismaticForConditionalGeneration", folder: Path):
    """The model wrapped by peft with the adapters that `save_pretrained` wrote to a folder.

    Raises:
        ValueError: they are not those of this model: missing, unexpected, of another shape, or no finite numbers.
    """
    from peft import PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict

    file = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file} does not hold the adapters of this model: {str(error)[:400]}") from None
    stored, wanted = load_file(file), get_peft_model_state_dict(adapted).keys()
    if stored.keys() != wanted:
        sides = {"missing": sorted(wanted - stored.keys()), "unexpected": sorted(stored.keys() - wanted)}
        listed = "; ".join(f"{side}: {', '.join(keys[:3])} ({len(keys)})" for side, keys in sides.items() if keys)
        raise ValueError(f"{file} does not hold the adapters of this model: {listed}")
    check_numbers(stored, file)
    return adapted
