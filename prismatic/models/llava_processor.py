"""LLaVA's processor for VLMs of ours: the same pixels, and the same token ids of every conversation."""

import copy

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaProcessor, SiglipImageProcessorPil

from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.processing import PrismaticProcessor
from prismatic.text.conversations import bos_of
from prismatic.text.prompts import IMAGE_TOKEN, without_marks

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
SIZES = ((40, 40), (97, 61), (24, 131))  # of images that the two image processors are compared on, beside the model's
QUESTIONS = ("What is to the left of the chair?", 'Is it "7:30", or\nnot?  naïve 你好 😀 x=12 ')

# Images come first and right after BOS, wherever a conversation has them; then the model's own template writes the
# texts. Chat servers tokenize what a template writes without adding BOS, so that it is written here.
IMAGES_FIRST = (
    "{%- for message in messages -%}{%- if message['content'] is not string -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] in ['image', 'image_url'] -%}"
    "{{- '" + IMAGE_TOKEN + "' -}}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- set plain = namespace(messages=[], text='') -%}{%- for message in messages -%}"
    "{%- set plain.text = message['content'] if message['content'] is string else '' -%}"
    "{%- if message['content'] is not string -%}{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}"
    "{%- set plain.text = plain.text + part['text'] -%}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- set plain.messages = plain.messages + [{'role': message['role'], 'content': plain.text | trim}] -%}"
    "{%- endfor -%}{%- set messages = plain.messages -%}{%- set bos_token = '' -%}"
    "{%- set enable_thinking = false -%}"
)
BOS = "{{- bos_token -}}"


def llava_processor(model: PrismaticForConditionalGeneration, processor: PrismaticProcessor) -> LlavaProcessor:
    """LLaVA's processor, with a chat template that puts images where ours does."""
    backbone, tokenizer = model.vision_backbone, copy.deepcopy(processor.tokenizer)
    spec, side, prefix = backbone.spec, backbone.image_size, backbone.vit.num_prefix_tokens
    square = {"height": side, "width": side}
    images = (CLIPImageProcessorPil if prefix else SiglipImageProcessorPil)(
        do_resize=True, size=square, resample=RESAMPLE[spec.interpolation], do_center_crop=False,
        crop_size=square, do_rescale=True, do_normalize=True, do_convert_rgb=True, image_mean=list(spec.mean),
        image_std=list(spec.std),
    )  # fmt: skip
    own = without_marks(processor.chat_template)
    tokenizer.chat_template = (BOS if bos_of(processor.tokenizer) else "") + IMAGES_FIRST + own
    return LlavaProcessor(
        images, tokenizer, patch_size=backbone.vit.patch_embed.proj.kernel_size[0], num_additional_image_tokens=prefix,
        vision_feature_select_strategy="default" if prefix else "full", chat_template=tokenizer.chat_template,
    )  # fmt: skip


def own_template(template: str) -> str:
    """The model's own chat template in one that `llava_processor` has written; others as they are."""
    return template.partition(IMAGES_FIRST)[2] if template.removeprefix(BOS).startswith(IMAGES_FIRST) else template


def noise(size: tuple[int, int]) -> Image.Image:
    """An image whose every pixel differs from those beside it."""
    return Image.frombytes("RGB", size, torch.randint(
        256, (size[0] * size[1] * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy().tobytes())  # fmt: skip


def check_processor(ours: PrismaticProcessor, theirs: LlavaProcessor) -> list[str]:
    """Compares pixel values and token ids of a few images and conversations.

    Returns:
        What differs from training and is as the model's own chat template has it, in sentences.

    Raises:
        ValueError: pixel values differ by more than 1e-5, or token ids at all.
    """
    for size in (*SIZES, tuple(ours.image_processor.size.values())):
        pixels = [
            one(noise(size), return_tensors="pt")["pixel_values"]
            for one in (ours.image_processor, theirs.image_processor)
        ]
        if (difference := (pixels[0] - pixels[1]).abs().max().item()) > 1e-5:
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels becomes other pixel values in LLaVA's image processor (by "
                f"{difference:.1e}), expected at most 1e-5; leave out --format llava"
            )
    image = noise(SIZES[0])
    part, text = {"type": "image", "image": image}, [{"type": "text", "text": question} for question in QUESTIONS]
    talk = [
        {"role": "assistant", "content": [{"type": "text", "text": "A table."}]},
        {"role": "user", "content": [text[1]]},
    ]
    _same_ids(ours, theirs, [{"role": "user", "content": [text[0]]}])
    _same_ids(ours, theirs, [{"role": "user", "content": [text[1], part]}])
    chat = [{"role": "user", "content": [part, text[0]]}, *talk]
    try:
        _same_ids(ours, theirs, chat)
    except ValueError:
        _same_ids(ours, theirs, chat, as_trained=False)
        return ["earlier answers are written as the chat template does, without the empty thoughts or EOS of training"]
    return []


def _same_ids(ours: PrismaticProcessor, theirs: LlavaProcessor, chat: list[dict], as_trained: bool = True) -> None:
    """Raises ValueError where a conversation gets other token ids than in training, or than `ours` gives it."""
    parts = [(message["role"], part) for message in chat for part in message["content"]]
    images = [part["image"] for _, part in parts if part["type"] == "image"]
    if as_trained:
        texts = [{"role": role, "content": part["text"]} for role, part in parts if part["type"] == "text"]
        expected = ours.ask([texts], [images])["input_ids"][0].tolist()
    else:
        options = {"tokenize": True, "add_generation_prompt": True, "enable_thinking": False}
        expected = ours.apply_chat_template(chat, **options)[0].tolist()
    found = theirs.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"][
        0
    ]
    if found == expected:
        return
    at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
    shown = [theirs.tokenizer.convert_ids_to_tokens(ids[at : at + 5]) for ids in (found, expected)]
    raise ValueError(
        f"LLaVA's processor makes other token ids of a conversation: {shown[0]} at position {at}, expected {shown[1]}; "
        "the chat template tells the date or depends on options, or the tokenizer treats text after a special token "
        "otherwise; leave out --format llava"
    )
