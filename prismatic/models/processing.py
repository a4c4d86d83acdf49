"""From prompts and pictures to model inputs: the processor that is saved beside the model."""

import warnings

from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from prismatic.data.conversations import encode_prompt, insert_image_tokens, tokenize_conversation
from prismatic.data.words import encode_text
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.prompts import IMAGE_TOKEN, stray_marks

_said: list[str] = []  # rows that a warning was given of: one a process suffices


class PrismaticProcessor(ProcessorMixin):
    """Tokenises prompts and puts the placeholders of an image right after BOS.

    Args:
        image_processor: a `PrismaticImageProcessor`.
        tokenizer: the LLM's, with `<image>` as a token of its own.
        num_image_tokens: placeholders an image takes.
        chat_template: defaults to the tokenizer's.
    """

    def __init__(self, image_processor=None, tokenizer=None, num_image_tokens=None, chat_template=None, **kwargs):
        self.num_image_tokens = num_image_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def __call__(self, images=None, text=None, padding=True, padding_side="left", return_tensors="pt", **kwargs):
        """Model inputs for prompts, one image or none each.

        Args:
            images: the images of the prompts that say `<image>`, in order. When no prompt says it, there must be one
                image for every prompt.
            text: a prompt or a list of prompts.
            padding: pad to the longest prompt.
            padding_side: "left" to generate from, "right" to train on.
            return_tensors: only "pt".
            kwargs: options of other processors, which Hugging Face pipelines pass; ignored.

        Returns:
            `input_ids`, `attention_mask` `[B, T]`, and `pixel_values` `[M, 3 * parts, H, W]` if there are images.
        """
        prompts = [text] if isinstance(text, str) else list(text)
        images = [] if images is None else [images] if isinstance(images, Image.Image) else _flat(images)
        marked = [IMAGE_TOKEN in prompt for prompt in prompts]
        if any(prompt.count(IMAGE_TOKEN) > 1 for prompt in prompts):
            raise ValueError(f"a prompt holds {IMAGE_TOKEN} more than once: this model sees one image a conversation")
        if images and not any(marked):
            marked = [True] * len(prompts)
        if sum(marked) != len(images):
            raise ValueError(f"{len(images)} images for {sum(marked)} prompts with an image: give one image each")

        rows = []
        for prompt, has_image in zip(prompts, marked, strict=True):
            plain = prompt.replace(IMAGE_TOKEN + "\n", "").replace(IMAGE_TOKEN, "")
            ids = encode_text(plain, self.tokenizer)[0]
            rows.append(self.insert_image(ids, ids)[0] if has_image else ids)
        return self._batch(rows, images, padding=padding, padding_side=padding_side, return_tensors=return_tensors)

    def ask(self, questions: list[str], images: list[Image.Image | None]) -> BatchFeature:
        """Model inputs, padded on the left, for the questions of conversations, each about an image or none.

        Other than a prompt in `__call__`, a question is all words: what looks like a control token in it is none.
        """
        rows = []
        for question, image in zip(questions, images, strict=True):
            ids = encode_prompt(question, self.tokenizer)
            rows.append(self.insert_image(ids, ids)[0] if image is not None else ids)
        there = [image for image in images if image is not None]
        return self._batch(rows, there, padding=True, padding_side="left", return_tensors="pt")

    def _batch(self, rows: list[list[int]], images: list[Image.Image], **options) -> BatchFeature:
        inputs = self.tokenizer.pad({"input_ids": rows}, **options)
        if images:
            inputs["pixel_values"] = self.image_processor(images)["pixel_values"]
        return BatchFeature(dict(inputs))

    def insert_image(self, input_ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Ids and labels with the placeholders of one image in their place."""
        bos = self.tokenizer.bos_token_id
        return insert_image_tokens(input_ids, labels, self.image_token_id, self.num_image_tokens, bos_token_id=bos)


def encode_row(row: dict, processor: PrismaticProcessor, max_length: int, stage: str) -> tuple[list[int], list[int]]:
    """Input ids and labels of a LLaVA row, with placeholders if it has an image.

    `stage` "align" supervises the caption alone; all others are conversations.
    """
    kind = "align" if stage == "align" else "finetune"
    if (marks := stray_marks(row)) and not _said:
        _said.append(row["id"])
        warnings.warn(
            f"row {row['id']!r} says {IMAGE_TOKEN} {marks} times more than it has images: those words are taken out of "
            "the text; python -m prismatic.data.verify counts such rows",
            stacklevel=2,
        )
    encoded = tokenize_conversation(
        row["conversations"], processor.tokenizer, max_length=max_length, stage=kind, row_id=row["id"]
    )
    return processor.insert_image(*encoded) if row["image"] is not None else encoded


def _flat(images) -> list[Image.Image]:
    """Hugging Face pipelines hand over a list of images, or one list for each prompt."""
    return [i for image in images for i in (image if isinstance(image, (list, tuple)) else [image])]


AutoProcessor.register(PrismaticConfig, PrismaticProcessor)
