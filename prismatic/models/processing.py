"""From prompts and images to model inputs: the processor that is saved beside the model."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData
from transformers.utils import logging

from prismatic.data.llava_rows import images_of
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.image_processing import flat_images
from prismatic.text.chat import as_text_messages, mark_literals, spoken_spans, unmarked_spans
from prismatic.text.conversations import (
    IGNORE_INDEX,
    bos_of,
    encode_prompt,
    insert_image_tokens,
    spoken,
    tokenize_conversation,
)
from prismatic.text.prompts import IMAGE_TOKEN, current_template
from prismatic.text.rendering import control_tokens, write_turns
from prismatic.text.words import encode_text

logger = logging.get_logger(__name__)
OPTIONS = {
    "padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens", "return_tensors",
    "return_offsets_mapping", "return_mm_token_type_ids",
}  # fmt: skip
FOR_OTHERS = {"return_text_replacement_offsets", "return_token_type_ids", "return_attention_mask", "return_metadata"}


class PrismaticProcessor(ProcessorMixin):
    """Tokenizes prompts and puts the placeholders of their images right after BOS, as training does.

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
        tokenizer.chat_template = current_template(tokenizer.chat_template)
        template = current_template(chat_template) or tokenizer.chat_template
        super().__init__(image_processor, tokenizer, chat_template=template)

    def __call__(
        self, images=None, text: str | list[str] | None = None, *, common_kwargs=None, text_kwargs=None,
        images_kwargs=None, **options,
    ) -> BatchFeature:  # fmt: skip
        """Model inputs for prompts about images, of which there may be several or none.

        The options are those of other processors:

        - `padding`: True or "longest" pads to the longest prompt, "max_length" to `max_length`, False not at all.
        - `padding_side`: "left" (the default) to generate from, "right" to train on.
        - `truncation`: cut prompts off at `max_length`, on the tokenizer's `truncation_side`.
        - `max_length`: in tokens, placeholders included; None is the tokenizer's `model_max_length`.
        - `pad_to_multiple_of`: of the padded length.
        - `add_special_tokens`: write BOS in front of a text that does not begin with it, if the tokenizer does so.
        - `return_tensors`: "pt" (the default), "np", or None for lists.
        - `return_offsets_mapping`: also `offset_mapping` `[B, T, 2]`, the span of the text that each token stands for.
        - `return_mm_token_type_ids`: also `mm_token_type_ids` `[B, T]`, 1 at placeholders.

        Args:
            images: an image, a list of them, or a list for each prompt; as PIL images, arrays, tensors, paths, URLs,
                data URLs or base64. There are as many as a prompt says `<image>`, before whose text they all come. When
                no prompt says it, a list for each prompt, or one image for every prompt.
            text: a prompt or a list of prompts.
            common_kwargs: more options.
            text_kwargs: more options.
            images_kwargs: more options.
            options: as above; others are ignored with a warning.

        Returns:
            `input_ids`, `attention_mask` `[B, T]`, and `pixel_values` `[M, 3 * parts, H, W]` if there are images.

        Raises:
            ValueError: images and `<image>` are not equally many, an image cannot be read, or truncation would cut off
                placeholders.
        """
        for group in (common_kwargs, text_kwargs, images_kwargs):
            options |= group or {}
        if any(options.pop(name, None) is not None for name in ("videos", "audio")):
            raise ValueError("this model takes images and text: it reads neither videos nor audio")
        if unknown := sorted(options.keys() - OPTIONS - FOR_OTHERS):
            logger.warning_once(f"options that the processor does not have are ignored: {', '.join(unknown)}")
        if text is None and images is None:
            raise ValueError("neither images nor text: give a prompt, an image, or both")
        inputs = {} if text is None else self._tokenize(images, text, **{k: options[k] for k in OPTIONS & {*options}})
        return self._with_pixels(inputs, images, options.get("return_tensors", "pt"))

    def _tokenize(
        self, images, text: str | list[str], *, padding=True, padding_side="left", truncation=False, max_length=None,
        pad_to_multiple_of=None, add_special_tokens=True, return_offsets_mapping=False, return_mm_token_type_ids=False,
        return_tensors=None,
    ) -> dict[str, list]:  # fmt: skip
        rows, spans = self._read_texts(images, text, add_special_tokens)
        if truncation:
            kept = [self._kept(row, max_length or self.tokenizer.model_max_length) for row in rows]
            rows, spans = ([x[part] for x, part in zip(given, kept, strict=True)] for given in (rows, spans))
        inputs = self._padded(
            rows, padding=padding, padding_side=padding_side, max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
        )  # fmt: skip
        if return_mm_token_type_ids:
            inputs["mm_token_type_ids"] = [
                [int(id == self.image_token_id) for id in ids] for ids in inputs["input_ids"]
            ]
        if return_offsets_mapping:
            around = [[(0, 0)] * (len(ids) - len(its)) for ids, its in zip(inputs["input_ids"], spans, strict=True)]
            pairs = zip(around, spans, strict=True)
            inputs["offset_mapping"] = [pad + its if padding_side == "left" else its + pad for pad, its in pairs]
        return inputs

    def _read_texts(self, images, text: str | list[str], add_special_tokens: bool) -> tuple[list, list]:
        """Ids of every prompt, with placeholders, and the spans of its text that they stand for."""
        prompts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"text is {text!r:.60}: expected a prompt or a list of prompts")
        read = [unmarked_spans(prompt) for prompt in prompts]
        marks = self._images_of_each(images, [marks for *_, marks in read])
        bos, written = self._bos()
        rows, spans = [], []
        for (plain, contents, places, _), count in zip(read, marks, strict=True):
            ours = bool(written) and plain.startswith(written)
            start = len(written) if ours else 0
            ids, its = encode_text(plain[start:], self.tokenizer, [(a - start, b - start) for a, b in contents])
            if not add_special_tokens and not ours and bos and not plain.startswith(self.tokenizer.bos_token):
                ids, its = ids[1:], its[1:]
            its = [(places[a + start], places[b + start - 1] + 1) if a < b else (0, 0) for a, b in its]
            ids, its = self.insert_images(ids, its, count)
            rows.append(ids)
            spans.append([(0, 0) if span == IGNORE_INDEX else span for span in its])
        return rows, spans

    def _images_of_each(self, images, marks: list[int]) -> list[int]:
        """How many images each prompt has."""
        flat = flat_images(images)
        nested = isinstance(images, (list, tuple)) and len(images) == len(marks)
        nested = nested and all(isinstance(its, (list, tuple)) for its in images)
        if flat and not any(marks):
            marks = [len(its) for its in images] if nested else [1] * len(marks)
        if sum(marks) != len(flat) or (nested and marks != [len(its) for its in images]):
            places = "prompts with an image" if max(marks) <= 1 else f"{IMAGE_TOKEN} in the prompts"
            raise ValueError(f"{len(flat)} images for {sum(marks)} {places}: give one image each")
        return marks

    def _bos(self) -> tuple[list[int], str]:
        """The BOS that the tokenizer adds, and its text where the chat template does not write it."""
        bos = bos_of(self.tokenizer)
        opening = write_turns([{"role": "user", "content": "x"}], self.tokenizer)[0].text
        return bos, "" if not bos or opening.startswith(self.tokenizer.bos_token) else self.tokenizer.bos_token

    def _kept(self, ids: list[int], limit: int) -> slice:
        """What truncation leaves of a prompt."""
        left = len(ids) > limit and self.tokenizer.truncation_side == "left"
        kept, count = slice(len(ids) - limit, None) if left else slice(limit), ids.count(self.image_token_id)
        if ids[kept].count(self.image_token_id) != count:
            raise ValueError(
                f"truncation to {limit} tokens would cut the {count} placeholders of a prompt's images: raise "
                "max_length, or truncate on the right"
            )
        return kept

    def _padded(self, rows: list[list[int]], **options) -> dict[str, list]:
        return dict(self.tokenizer.pad({"input_ids": rows}, return_tensors=None, **options))

    def apply_chat_template(
        self,
        conversation,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        """The text of one conversation or several, or their model inputs.

        Images may be in any turn, as parts `image` or `image_url`; their placeholders come where training puts them.
        What looks like a control token in a message, `<image>` included, is words. White space around a message is
        dropped, as in training.

        Args:
            conversation: messages (`role`, `content`), or a list of such lists.
            chat_template: Jinja; defaults to the processor's.
            tokenize: return model inputs instead of text. Text begins with BOS where the tokenizer writes one.
            return_dict: return all inputs instead of `input_ids` alone.
            return_assistant_tokens_mask: also `assistant_masks` `[B, T]`, 1 at the tokens that training supervises.
            processor_kwargs: options of `__call__`.
            kwargs: as in `ProcessorMixin.apply_chat_template`: `add_generation_prompt`, `continue_final_message`,
                `tools`, `return_tensors`, variables of the template.

        Raises:
            ValueError: the template refuses the conversation, or an image cannot be read.
        """
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        read = [as_text_messages(one, marks=not tokenize) for one in (conversation if batched else [conversation])]
        chats, images = [chat for chat, _ in read], [its for _, its in read]
        options = dict(processor_kwargs or {})
        if not tokenize:
            found = super().apply_chat_template(chats, chat_template, **kwargs)
            bos = self._bos()[1]
            found = [bos + text for text in found]
            return found if batched else found[0]
        chats = [mark_literals(chat, control_tokens(self.tokenizer)) for chat in chats]
        options.pop("add_special_tokens", None)  # callers say False so as not to double a BOS; none is doubled here
        if any(images):
            options["images"] = images
        if return_assistant_tokens_mask:
            options["return_offsets_mapping"] = True
        inputs = super().apply_chat_template(
            chats, chat_template, tokenize=True, return_dict=True, processor_kwargs=options, **kwargs
        )
        if return_assistant_tokens_mask:
            texts = super().apply_chat_template(chats, chat_template, **kwargs)
            offsets = [[(int(a), int(b)) for a, b in its] for its in inputs.pop("offset_mapping")]
            masks = [
                [int(said) for said in spoken(its, spoken_spans(chat, text, self.tokenizer, chat_template))]
                for its, chat, text in zip(offsets, chats, texts, strict=True)
            ]
            ids = inputs["input_ids"]
            inputs["assistant_masks"] = (
                masks if isinstance(ids, list) else ids.new_tensor(masks) if torch.is_tensor(ids) else np.asarray(masks)
            )
        return inputs if return_dict else inputs["input_ids"]

    def ask(self, questions: Sequence[str | list[dict]], images: Sequence) -> BatchFeature:
        """Model inputs, padded on the left, from which the answers are generated.

        Other than a prompt in `__call__`, a question is all words: what looks like a control token in it is none.

        Args:
            questions: a question each, or a conversation that ends with one, in which `<image>` are taken out.
            images: of every question its image, a list of them, or None; they come before the text.
        """
        pictures = [flat_images(image) for image in images]
        rows = []
        for question, its in zip(questions, pictures, strict=True):
            ids = encode_prompt(question, self.tokenizer)
            rows.append(self.insert_images(ids, ids, len(its))[0])
        return self._with_pixels(self._padded(rows, padding=True, padding_side="left"), pictures, "pt")

    def _with_pixels(self, inputs: dict, images, return_tensors: str | None) -> BatchFeature:
        if flat := flat_images(images):
            inputs["pixel_values"] = self.image_processor(flat)["pixel_values"]
        return BatchFeature(inputs, tensor_type=return_tensors)

    def insert_images(self, input_ids: list[int], labels: list, images: int) -> tuple[list[int], list]:
        """Ids and labels with the placeholders of so many images in their place."""
        tokens, bos = images * self.num_image_tokens, self.tokenizer.bos_token_id
        return insert_image_tokens(input_ids, labels, self.image_token_id, tokens, bos_token_id=bos)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Placeholders of images of any sizes: always as many."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)


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


AutoProcessor.register(PrismaticConfig, PrismaticProcessor)
