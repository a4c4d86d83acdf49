"""VLMs of transformers' own kinds: loading them, prompts of those without a chat template, limits of their pictures."""

import torch

# How models older than chat templates are asked; their processors place the one image before the text by themselves.
PROMPTS = {"instructblip": "{}", "blip-2": "Question: {} Answer:"}


def set_template(model, processor) -> None:
    """Gives the processor a chat template where it has none, if the model is one of `PROMPTS`.

    Raises:
        ValueError: There is none, or the processor does not say where images go.
    """
    kind = model.config.model_type
    if kind in PROMPTS:
        _set_image_tokens(model, processor)
    if getattr(processor, "chat_template", None) or processor.tokenizer.chat_template:
        return
    if kind not in PROMPTS:
        raise ValueError(
            f"{type(processor).__name__} has no chat template, so that prompts cannot be written: set "
            "processor.chat_template (see prismatic.text.prompts.chat_template for the styles there are)"
        )
    processor.chat_template = _template(PROMPTS[kind])


def _template(asked: str) -> str:
    """A chat template of one question, written in the place of {}, and one answer."""
    before, after = asked.split("{}")
    text = "{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}"
    question = f"{{% if message.role == 'user' %}}{before}{text}{after}"
    return f"{{% for message in messages %}}{question}{{% else %}} {text}{{% endif %}}{{% endfor %}}"


def _set_image_tokens(model, processor) -> None:
    """Has a processor write as many image tokens as the model expects: one that writes none shows no picture.

    Raises:
        ValueError: The model was saved before it had an image token.
    """
    if model.config.image_token_id is None:
        raise ValueError(
            f"the configuration of this {type(model).__name__} names no image_token_id, so that pictures would have no "
            "place: take a newer revision of the model"
        )
    processor.num_query_tokens = model.config.num_query_tokens


def load_other(name: str, dtype: torch.dtype) -> tuple:
    """Model and processor of transformers' own kinds, from a folder or the hub.

    Raises:
        ValueError: The processor needs a package that is absent, or the files do not hold all weights of the model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except ImportError as error:
        raise ValueError(f"the processor of {name} needs a package: {' '.join(str(error).split())}") from error
    model, found = AutoModelForImageTextToText.from_pretrained(
        name, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    if missing := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}: its files are of "
            "another layout; of LLaVA take those that llava-hf publishes"
        )
    return model, processor


def limit_pixels(processor, most: int) -> None:
    """Has pictures of more pixels scaled down.

    Raises:
        ValueError: The image processor has no such limit, or takes no pictures that small.
    """
    images = processor.image_processor
    name, known = type(images).__name__, getattr(type(images), "valid_kwargs", None)
    if "max_pixels" not in getattr(known, "__annotations__", {}):
        raise ValueError(f"{name} knows no max_pixels: leave --max_pixels out")
    settings = images.to_dict()
    if most < (least := settings["size"].get("shortest_edge") or 1):  # these processors call pixels edges
        raise ValueError(f"--max_pixels is {most:,}: {name} takes no pictures of less than {least:,} pixels")
    processor.image_processor = type(images)(**settings | {"max_pixels": most})
