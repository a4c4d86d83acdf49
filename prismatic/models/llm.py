"""Language models by name: specification, configuration, tokenizer, weights."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.models.reject_remote_code import refuse_code
from prismatic.models.smollm2 import smollm2_folder
from prismatic.text.prompts import IMAGE_TOKEN, chat_template
from prismatic.text.rendering import render_prompt
from prismatic.text.tokenizers import from_sentencepiece, from_tokenizer_json
from vision_backbones.names import suggest
from vision_backbones.state_dicts import check_numbers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

PAD_TOKEN = "<PAD>"
VOCAB_MULTIPLE = 64  # rows of the embedding are padded to a multiple of this
NO_CODE = {"trust_remote_code": False}  # left out, transformers asks on the terminal and runs what the folder holds


@dataclass(frozen=True)
class LLMSpec:
    """What a language model is: its name, where it comes from, how it is spoken to.

    Attributes:
        id: the name it is asked for by.
        hub: Hugging Face id or local folder.
        prompt_style: name for `prismatic.text.prompts.chat_template`; None keeps the template its tokenizer brings.
        architecture: `model_type` and the numbers that differ from that type's defaults; None means read `config.json`.
    """

    id: str
    hub: str
    prompt_style: str | None = None
    architecture: dict | None = None


_LLAMA_7B = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA_13B = _LLAMA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_MISTRAL_7B = {"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
_PHI_2 = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "vocab_size": 51200,
    "partial_rotary_factor": 0.4,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
_SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

_SPECS = {
    spec.id: spec
    for spec in (
        LLMSpec("llama2-7b-pure", "meta-llama/Llama-2-7b-hf", "pure", _LLAMA_7B),
        LLMSpec("llama2-13b-pure", "meta-llama/Llama-2-13b-hf", "pure", _LLAMA_13B),
        LLMSpec("llama2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", "llama2-chat", _LLAMA_7B),
        LLMSpec("llama2-13b-chat", "meta-llama/Llama-2-13b-chat-hf", "llama2-chat", _LLAMA_13B),
        LLMSpec("vicuna-v15-7b", "lmsys/vicuna-7b-v1.5", "vicuna-v1.5", _LLAMA_7B),
        LLMSpec("vicuna-v15-13b", "lmsys/vicuna-13b-v1.5", "vicuna-v1.5", _LLAMA_13B),
        LLMSpec("mistral-v0.1-7b-pure", "mistralai/Mistral-7B-v0.1", "pure", _MISTRAL_7B),
        LLMSpec("mistral-v0.1-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.1", "mistral-instruct", _MISTRAL_7B),
        LLMSpec("phi-2-3b", "microsoft/phi-2", "phi-2", _PHI_2),
        LLMSpec("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", None, _SMOLLM2_135M),
        LLMSpec("miniature", str(Path(__file__).parent.parent / "miniature" / "assets" / "llm"), "pure"),
    )
}


def list_llms() -> list[str]:
    """Ids of the language models known by name; any Hugging Face id or local folder works besides."""
    return list(_SPECS)


def get_llm_spec(id_or_path: str) -> LLMSpec:
    """Specification of a language model by id, Hugging Face id (`owner/name`) or local folder.

    Raises:
        ValueError: if it is none of them; names the closest ids. Or if the folder names Python code to run.
    """
    if id_or_path in _SPECS:
        return _SPECS[id_or_path]
    refuse_code(Path(id_or_path))
    is_hub_id = id_or_path.count("/") == 1 and id_or_path[0] not in "./~"
    if id_or_path and (Path(id_or_path).is_dir() or is_hub_id):
        return LLMSpec(id_or_path, id_or_path)
    raise ValueError(
        f"unknown LLM {id_or_path!r}: neither a folder nor a Hugging Face id (owner/name); "
        + suggest(id_or_path, _SPECS)
    )


def llm_config(id_or_path: str) -> "PreTrainedConfig":
    """Configuration of a language model, or of a multimodal model's text part; known ids but `miniature` read nothing.

    Raises:
        ValueError: if the id is unknown, or its `config.json` cannot be read.
    """
    from transformers import AutoConfig

    spec = get_llm_spec(id_or_path)
    if spec.architecture is None:
        return _reading(spec, lambda: _own(AutoConfig.from_pretrained(spec.hub, **NO_CODE))).get_text_config()
    return AutoConfig.for_model(**spec.architecture)


def load_tokenizer(id_or_path: str, prompt_style: str = "auto") -> "PreTrainedTokenizerFast":
    """Tokenizer of a language model, ready for training.

    It has a pad token of its own (`<PAD>` is added where there is none, as the reference does), the special token
    `<image>`, a chat template (with "auto" the spec's prompt style, else what the tokenizer brings, else `pure`),
    writes BOS at most around a text, and pads on the right.

    Raises:
        ValueError: if the id or style is unknown, or no tokenizer can be read there.
    """
    from prismatic.text.speech import template_of

    asked = template_of(prompt_style)
    spec = get_llm_spec(id_or_path)
    source = source_of(spec)
    tokenizer = _reading(spec, lambda: _read_tokenizer(source))
    tokenizer.init_kwargs.pop("auto_map", None)  # code that its hub folder names besides
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise ValueError(f"the chat template of LLM {spec.id!r} is not a string: {ascii(tokenizer.chat_template)[:80]}")
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of LLM {spec.id!r} knows no offsets: save it as a tokenizer.json")
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer of LLM {spec.id!r} names no EOS token: name one in its tokenizer_config.json")
    if tokenizer.pad_token in (None, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    style = spec.prompt_style or (None if tokenizer.chat_template else "pure")
    if asked or style:
        tokenizer.chat_template = asked or chat_template(style)
    _write_bos_at_most(tokenizer)
    # ChatML models call BOS what opens every turn: images, which follow BOS, would land between it and the role.
    if (
        tokenizer.bos_token
        and render_prompt([{"role": "user", "content": ""}], tokenizer).count(tokenizer.bos_token) > 1
    ):
        tokenizer.bos_token = None
    tokenizer.padding_side = "right"
    return tokenizer


def load_llm(
    id_or_path: str, *, pretrained: bool = True, dtype: "torch.dtype | str | None" = None
) -> "PreTrainedModel":
    """Causal language model, or that in a multimodal model (Gemma-3-it), in evaluation mode.

    Args:
        id_or_path: id, Hugging Face id or local folder.
        pretrained: whether to read weights; else they are drawn at random, with no network for the known ids.
        dtype: None keeps the dtype that the weights are stored in.

    Raises:
        ValueError: if the id is unknown, or the weights cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    spec = get_llm_spec(id_or_path)
    if not pretrained:
        return AutoModelForCausalLM.from_config(llm_config(id_or_path), dtype=dtype).eval()
    source, options = source_of(spec), {"dtype": dtype or "auto", "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # to be listed here
    config = _reading(spec, lambda: AutoConfig.from_pretrained(source, **NO_CODE))
    whole = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
    llm, found = _reading(spec, lambda: whole.from_pretrained(source, **options, **NO_CODE))
    _own(llm.config)
    llm.config.return_dict = True
    if absent := sorted(found["missing_keys"]):  # transformers would draw them at random and only warn
        raise ValueError(f"the weights of LLM {spec.id!r} in {spec.hub} lack {', '.join(absent[:5])} ({len(absent)})")
    if other := sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]):
        raise ValueError(
            f"the weights of LLM {spec.id!r} in {spec.hub} have other shapes than its config.json says: "
            f"{', '.join(other[:5])} ({len(other)})"
        )
    check_numbers({name: p for name, p in llm.named_parameters() if p.is_floating_point()}, spec.hub)
    return llm if whole is AutoModelForCausalLM else _text_part(llm)


def _text_part(model: "PreTrainedModel") -> "PreTrainedModel":
    """The causal LM inside a multimodal model, whose weights it takes over."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(model.config.get_text_config(), dtype=model.dtype)
    setattr(llm, llm.base_model_prefix, model.get_decoder())
    llm.set_output_embeddings(model.get_output_embeddings())
    if left := [name for name, value in llm.state_dict().items() if value.is_meta]:
        raise ValueError(f"LLM of type {model.config.model_type}: found no {left[0]} in it; give its text model")
    llm.generation_config = model.generation_config
    return llm.eval()


def _read_tokenizer(source: str) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    def find(name):
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False)

    if find("tokenizer.json"):
        return from_tokenizer_json(source)
    model_file = find("tokenizer.model")
    return from_sentencepiece(model_file) if model_file else AutoTokenizer.from_pretrained(source, **NO_CODE)


def _write_bos_at_most(tokenizer) -> None:
    """Takes what a post-processor puts around texts besides BOS: an EOS after a prompt would end the answer."""
    words = tokenizer("x", add_special_tokens=False)["input_ids"]
    around, bos = tokenizer("x")["input_ids"], [tokenizer.bos_token_id]
    if around in (words, bos + words):
        return
    from tokenizers.processors import TemplateProcessing

    token = tokenizer.bos_token if around[: -len(words)][:1] == bos else None
    special_tokens = [(token, tokenizer.bos_token_id)] if token else []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A" if token else "$A", special_tokens=special_tokens
    )
    for name in ("add_eos_token", "add_bos_token"):  # else the post-processor would be built anew when it is read
        tokenizer.init_kwargs.pop(name, None)


def _own(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """A configuration of transformers' own, without the code that its hub folder names besides."""
    config.__dict__.pop("auto_map", None)
    return config


def source_of(spec: LLMSpec) -> str:
    """Folder or Hugging Face id to read weights and tokenizer from."""
    return str(smollm2_folder(spec.hub, spec.architecture)) if spec.id == "smollm2-135m" else spec.hub


def _reading(spec: LLMSpec, read):
    """What `read` returns, its failure to find or understand files told in one line with the remedy."""
    from safetensors import SafetensorError

    try:
        return read()
    except pickle.UnpicklingError as error:
        reason, cause = "its weights are a pickle that calls more than tensors, and is refused; nothing was run", error
    except Exception as error:  # of a stranger's configuration, files and packages: nearly anything
        reason = " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
        if not isinstance(error, (OSError, ValueError, SafetensorError)):
            reason = f"{type(error).__name__}: {reason}"
        cause = error
    if spec.id == "miniature":
        remedy = "it comes with the package: install it again"
    elif Path(spec.hub).is_dir():
        remedy = "a folder needs config.json, model.safetensors and tokenizer.json (or tokenizer.model)"
    else:
        remedy = "check the name and the connection, run `hf auth login` if the model is gated, or give a local folder"
    raise ValueError(f"cannot read LLM {spec.id!r} from {spec.hub}: {reason}; {remedy}") from cause
