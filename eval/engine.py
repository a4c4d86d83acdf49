"""Answers to many questions about few images: what they share is computed once.

An image is encoded once, the KV cache of BOS and its patches is computed once, held once and read once for all of its
questions, and questions about several images fill one batch. Texts are read in parts of about equal length. Greedy
decoding drops rows as they end; choices need no decoding.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from eval.rows import RoomyLayer, Rows
from eval.task import Choose, Generate
from prismatic.models.attention import SHARED_PREFIX, SharedPrefix
from prismatic.models.self_check import attention, context_of
from prismatic.text.conversations import bos_of, encode_prompt, option_token_ids

READ_AT_ONCE = 32  # texts, sorted by length, that are padded to a common one
Prefix = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of every layer
COMPACT_AT = 0.75  # finished rows are dropped once no more than this share of a batch is still being written


@dataclass(frozen=True)
class Question:
    """A prompt (before the chat template) about the `image`-th of a batch's pictures, and the kind of its answer."""

    image: int
    prompt: str
    kind: Generate | Choose


@dataclass(frozen=True)
class Answer:
    """What the model says, or why it could not; `probabilities` of the options, in their order, sum to 1.

    `finish_reason` is what a server says of why its answer ended: "length" where it was cut off.
    """

    text: str = ""
    probabilities: list[float] | None = None
    error: str | None = None
    finish_reason: str | None = None


class SharedPrefixEngine:
    """Answers with a Prismatic model, exactly as answering one question at a time would.

    Args:
        model: A `PrismaticForConditionalGeneration`, on its device, in evaluation mode.
        processor: Its processor.
        batch_size: Rows that are computed at once.
    """

    def __init__(self, model, processor, batch_size: int):
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.device = next(model.parameters()).device
        self.transform = processor.image_processor.transform
        eos = model.generation_config.eos_token_id
        self.eos = torch.tensor(eos if isinstance(eos, list) else [eos], device=self.device)
        names = inspect.signature(model.llm.forward).parameters
        self.cache_argument = "cache" if "cache" in names else "past_key_values"
        self.bos = bos_of(processor.tokenizer)
        self._options: dict[tuple[str, ...], list[list[int]]] = {}

    def prepare(self, image: Image.Image | list[Image.Image]) -> torch.Tensor:
        """Pixels `[3 * parts, H, W]` of a picture, or `[M, 3 * parts, H, W]` of all that a question is about."""
        return torch.stack([self.transform(one) for one in image]) if isinstance(image, list) else self.transform(image)

    def option_ids(self, options: tuple[str, ...]) -> list[list[int]]:
        """Token ids with which each option continues a prompt."""
        if options not in self._options:
            self._options[options] = option_token_ids(self.processor.tokenizer, list(options))
        return self._options[options]

    @torch.inference_mode()
    def answer(self, pictures: Sequence[torch.Tensor], questions: Sequence[Question]) -> list[Answer]:
        """Answers to `questions` about `pictures` (from `prepare`), in their order."""
        answers: list[Answer | None] = [None] * len(questions)
        rows = []  # (question number, image, kind, token ids after BOS)
        for number, question in enumerate(questions):
            ids = self._suffix(question.prompt)
            new = question.kind.max_new_tokens if isinstance(question.kind, Generate) else 1
            more = (_images(pictures[question.image]) - 1) * self.processor.num_image_tokens
            if problem := too_long(self.model, self.processor, len(self.bos) + more + len(ids), new):
                answers[number] = Answer(error=problem)
            else:
                rows.append((number, question.image, question.kind, ids))
        with attention(self.model, SHARED_PREFIX):
            for shown, asked in _by_images(pictures, rows):
                prefix = self.prefix(shown)
                for kind, group in _by_kind(asked):
                    group.sort(key=lambda row: len(row[3]))
                    for start in range(0, len(group), self.batch_size):
                        part = group[start : start + self.batch_size]
                        solved = self._generate(prefix, part, kind) if kind else self._choose(prefix, part)
                        for row, answer in zip(part, solved, strict=True):
                            answers[row[0]] = answer
        return answers

    def _suffix(self, prompt: str) -> list[int]:
        return encode_prompt(prompt, self.processor.tokenizer)[len(self.bos) :]

    def prefix(self, pictures: Sequence[torch.Tensor], start: list[int] | None = None) -> Prefix:
        """Keys and values `[pictures, heads, tokens, width]` of every layer, for BOS and patches.

        Args:
            pictures: Pixels `[3 * parts, H, W]`, or equally many `[M, 3 * parts, H, W]`, to be read one after another.
            start: Token ids that stand before the patches; BOS if None.
        """
        stacks = torch.stack([x if x.dim() == 4 else x[None] for x in pictures]).to(self.device)
        ids = self.bos if start is None else start
        ids = ids + [self.processor.image_token_id] * (self.processor.num_image_tokens * stacks.shape[1])
        ids = torch.tensor([ids] * len(stacks), device=self.device)
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        embeddings = self.model.embed(ids, stacks.flatten(0, 1) if stacks.shape[1] else None)
        self._llm(inputs_embeds=embeddings, cache=cache, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _llm(self, *, cache: Cache, **inputs) -> torch.Tensor:
        """Logits `[rows, kept, vocabulary]` in float32."""
        return self.model.llm(**inputs, **{self.cache_argument: cache}, use_cache=True).logits.float()

    def read(self, prefix, images: list[int], suffixes: list[list[int]], new: int, keep: int) -> Rows:
        """Runs texts, from short to long, after the prefixes of their images; keeps room for `new` more tokens.

        Texts are padded on the left to the longest of all in the cache, but computed in parts with less padding.
        """
        longest, start = max(map(len, suffixes)), prefix[0][0].shape[-2]
        rooms = [[x.new_zeros(len(suffixes), x.shape[1], longest + new, x.shape[-1]) for x in both] for both in prefix]
        pad = self.processor.tokenizer.pad_token_id or 0
        logits = []
        for first in range(0, len(suffixes), READ_AT_ONCE):
            part = suffixes[first : first + READ_AT_ONCE]
            length = max(map(len, part))
            ids = torch.tensor([[pad] * (length - len(row)) + row for row in part], device=self.device)
            real = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in part], device=self.device)
            itself = torch.eye(length, dtype=torch.bool, device=self.device)  # padding sees itself: softmax needs a key
            mask = real.bool()[:, None, :].expand(-1, length, -1).tril() | itself
            left = longest - length
            layers = [RoomyLayer(*(x[first : first + len(part), :, left:] for x in both), 0) for both in rooms]
            positions = (start + real.cumsum(1) - 1).clamp(min=start)
            out = self._llm(
                input_ids=ids,
                attention_mask=mask[:, None],
                position_ids=positions,
                cache=Cache(layers=layers),
                shared_prefix=SharedPrefix.of_rows(prefix, images[first : first + len(part)], positions),
                logits_to_keep=keep,
            )
            logits.append(pad_left(out, keep))
        lengths = torch.tensor([[len(row)] for row in suffixes], device=self.device)
        mask = torch.arange(longest + new, device=self.device) >= longest - lengths
        cache = Cache(layers=[RoomyLayer(*both, longest) for both in rooms])
        return Rows(cache, images, mask, start + lengths - 1, longest, torch.cat(logits))

    def step(self, state: Rows, tokens: torch.Tensor, layout: SharedPrefix) -> torch.Tensor:
        """Logits `[rows, 1, vocabulary]` after one more token `[rows]` each."""
        state.positions = state.positions + 1
        state.length += 1
        return self._llm(
            input_ids=tokens[:, None],
            attention_mask=state.mask[:, None, None, : state.length],
            position_ids=state.positions,
            cache=state.cache,
            shared_prefix=replace(layout, positions=state.positions),
            logits_to_keep=1,
        )

    def _generate(self, prefix, rows, kind: Generate) -> list[Answer]:
        state = self.read(prefix, [row[1] for row in rows], [row[3] for row in rows], kind.max_new_tokens, keep=1)
        outputs = torch.full((len(rows), kind.max_new_tokens), -1, device=self.device)
        writing = torch.arange(len(rows), device=self.device)  # which row each row of the batch is
        going = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        logits, layout = state.logits, SharedPrefix.of_rows(prefix, state.images, state.positions)
        for step in range(kind.max_new_tokens):
            tokens = logits[:, -1].argmax(-1)
            outputs[writing[going], step] = tokens[going]
            going &= ~torch.isin(tokens, self.eos)
            alive = int(going.sum())
            if not alive or step == kind.max_new_tokens - 1:
                break
            if alive <= COMPACT_AT * len(going):
                kept = going.nonzero().flatten()
                state.keep(kept)
                layout = SharedPrefix.of_rows(prefix, state.images, state.positions)
                tokens, writing, going = tokens[kept], writing[kept], going[kept]
            logits = self.step(state, tokens, layout)
        ids = [[token for token in row if token >= 0] for row in outputs.tolist()]
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Answer(text.strip()) for text in texts]

    def _choose(self, prefix, rows) -> list[Answer]:
        options = [self.option_ids(row[2].options) for row in rows]
        long = [max(map(len, its)) > 1 for its in options]
        scores: list = [None] * len(rows)
        for places, solve in (
            ([n for n, beyond in enumerate(long) if not beyond], self._score_tokens),
            ([n for n, beyond in enumerate(long) if beyond], self._score_long_options),
        ):
            if places:
                images, suffixes = [rows[n][1] for n in places], [rows[n][3] for n in places]
                for n, its in zip(places, solve(prefix, images, suffixes, [options[n] for n in places]), strict=True):
                    scores[n] = its
        return [chosen(row[2], its.softmax(-1).tolist()) for row, its in zip(rows, scores, strict=True)]

    def _score_tokens(self, prefix, images, suffixes, options) -> list[torch.Tensor]:
        """Logits of each row's options, which take one token each."""
        logits = self.read(prefix, images, suffixes, new=0, keep=1).logits[:, -1]
        return [row[torch.tensor(its, device=self.device)[:, 0]] for row, its in zip(logits, options, strict=True)]

    def _score_long_options(self, prefix, images, suffixes, options) -> list[torch.Tensor]:
        """Log probabilities of each row's options, which take several tokens: a row of the batch for each option."""
        pairs = [(row, text + option[:-1], place) for row, text in enumerate(suffixes)
                 for place, option in enumerate(options[row])]  # fmt: skip
        pairs.sort(key=lambda pair: len(pair[1]))
        longest = max(len(option) for its in options for option in its)
        scores = [torch.empty(len(its), device=self.device) for its in options]
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            logits = self.read(prefix, [images[i] for i, _, _ in part], [t for _, t, _ in part], 0, longest).logits
            for logprobs, (row, _, place) in zip(logits.log_softmax(-1), part, strict=True):
                option = torch.tensor(options[row][place], device=self.device)
                scores[row][place] = logprobs[-len(option) :].gather(1, option[:, None]).sum()
        return scores


def too_long(model, processor, text: int, new: int) -> str | None:
    """Why a prompt of so many tokens, an image and so many new tokens do not fit; None if they do."""
    limit = context_of(model.config.text_config)
    total = processor.num_image_tokens + text + new
    if limit and total > limit:
        return f"prompt and answer may take {total} tokens, this model's context has {limit}"
    return None


def pad_left(logits: torch.Tensor, length: int) -> torch.Tensor:
    """Logits `[rows, length, vocabulary]`, with zeros in front where there are fewer."""
    return torch.nn.functional.pad(logits, (0, 0, length - logits.shape[1], 0))


def chosen(kind: Choose, probabilities: list[float]) -> Answer:
    """The likeliest option; the first of equals."""
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return Answer(kind.options[best], probabilities)


def _images(pixels: torch.Tensor) -> int:
    return len(pixels) if pixels.dim() == 4 else 1


def _by_images(pictures: Sequence[torch.Tensor], rows) -> list[tuple[list[torch.Tensor], list]]:
    """Pictures of as many images each, and the rows about them, which number these alone."""
    found = []
    for count in dict.fromkeys(map(_images, pictures)):
        places = [number for number, pixels in enumerate(pictures) if _images(pixels) == count]
        renumbered = {number: place for place, number in enumerate(places)}
        its = [(row[0], renumbered[row[1]], *row[2:]) for row in rows if row[1] in renumbered]
        found += [([pictures[number] for number in places], its)] if its else []
    return found


def _by_kind(rows) -> list[tuple[Generate | None, list]]:
    """Rows that are generated, of one limit each, and with None those that choose, whatever the options."""
    kinds = [row[2] if isinstance(row[2], Generate) else None for row in rows]
    return [(kind, [row for row, its in zip(rows, kinds, strict=True) if its == kind]) for kind in dict.fromkeys(kinds)]
