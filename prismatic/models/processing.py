"""From prompts and pictures to model inputs: the processor that is saved beside the model."""

from collections.abc import Sequence

from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from prismatic.data.llava_rows import images_of
from prismatic.models.configuration import PrismaticConfig
from prismatic.text.conversations import encode_prompt, insert_image_tokens, tokenize_conversation
from prismatic.text.prompts import IMAGE_TOKEN
from prismatic.text.words import encode_text


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
        """Model inputs for prompts about images, of which there may be several or none.

        Args:
            images: the images of the prompts, in order: as many as a prompt says `<image>`, before whose text they all
                come. When no prompt says it, there must be one image for every prompt.
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
        marks = [prompt.count(IMAGE_TOKEN) for prompt in prompts]
        if images and not any(marks):
            marks = [1] * len(prompts)
        if sum(marks) != len(images):
            places = "prompts with an image" if max(marks) <= 1 else f"{IMAGE_TOKEN} in the prompts"
            raise ValueError(f"{len(images)} images for {sum(marks)} {places}: give one image each")

        rows = []
        for prompt, count in zip(prompts, marks, strict=True):
            plain = prompt.replace(IMAGE_TOKEN + "\n", "").replace(IMAGE_TOKEN, "")
            ids = encode_text(plain, self.tokenizer)[0]
            rows.append(self.insert_images(ids, ids, count)[0])
        return self._batch(rows, images, padding=padding, padding_side=padding_side, return_tensors=return_tensors)

    def ask(self, questions: Sequence[str | list[dict]], images: Sequence) -> BatchFeature:
        """Model inputs, padded on the left, from which the answers are generated.

        Other than a prompt in `__call__`, a question is all words: what looks like a control token in it is none.

        Args:
            questions: a question each, or a conversation that ends with one, in which `<image>` are taken out.
            images: of every question its image, a list of them, or None; they come before the text.
        """
        pictures = [_flat([image]) if image is not None else [] for image in images]
        rows = []
        for question, its in zip(questions, pictures, strict=True):
            ids = encode_prompt(question, self.tokenizer)
            rows.append(self.insert_images(ids, ids, len(its))[0])
        return self._batch(rows, _flat(pictures), padding=True, padding_side="left", return_tensors="pt")

    def _batch(self, rows: list[list[int]], images: list[Image.Image], **options) -> BatchFeature:
        inputs = self.tokenizer.pad({"input_ids": rows}, **options)
        if images:
            inputs["pixel_values"] = self.image_processor(images)["pixel_values"]
        return BatchFeature(dict(inputs))

    def insert_images(self, input_ids: list[int], labels: list[int], images: int) -> tuple[list[int], list[int]]:
        """Ids and labels with the placeholders of so many images in their place."""
        tokens, bos = images * self.num_image_tokens, self.tokenizer.bos_token_id
        return insert_image_tokens(input_ids, labels, self.image_token_id, tokens, bos_token_id=bos)


def encode_row(row: dict, processor: PrismaticProcessor, max_length: int, stage: str) -> tuple[list[int], list[int]]:
    """Input ids and labels of a LLaVA row, with the placeholders of its images.

    `stage` "align" supervises the caption alone; all others are conversations.
    """
    return encode_counting(row, processor, max_length, stage)[:2]


def encode_counting(
    row: dict, processor: PrismaticProcessor, max_length: int, stage: str
) -> tuple[list[int], list[int], int]:
    """What `encode_row` returns, and how many tokens of text were cut off."""
    ids, labels = tokenize_conversation(
        row["conversations"], processor.tokenizer, None, "align" if stage == "align" else "finetune", row_id=row["id"]
    )
    encoded = processor.insert_images(ids[:max_length], labels[:max_length], len(images_of(row)))
    return *encoded, max(0, len(ids) - max_length)


def _flat(images) -> list[Image.Image]:
    """Hugging Face pipelines hand over a list of images, or one list for each prompt."""
    return [i for image in images for i in (image if isinstance(image, (list, tuple)) else [image])]


AutoProcessor.register(PrismaticConfig, PrismaticProcessor)
