"""What the `miniature` LLM is pretrained on: scenes as maps or sentences with questions, and the tokens of both."""

import re
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from prismatic.miniature.language import (
    BOX_PROMPT,
    CELLS,
    LETTERS,
    LOOKS,
    OPTION_PROMPT,
    SHORT_ANSWER,
    STATEMENT_PROMPT,
    Question,
    cell_contents,
    cover_of,
    describe,
    prompt,
    questions,
    with_options,
)
from prismatic.miniature.scenes import COLOURS, HALF_EXTENT, SHAPES, sample_layout

# Words of the real benchmarks that miniature questions lack.
WORDS = """Please provide a short description for this region: Yes No unanswerable inside near touching one two three
four zero many shape object picture image what where which"""
# Fixed parts of prompts are one token each: a miniature run should spend its time on the scenes. So are fractions with
# two decimals, which boxes are written in: digits would have to be computed one after the other.
FIXED = (
    *(part.strip(" ") for part in STATEMENT_PROMPT.split("{}")),
    BOX_PROMPT.split(' "{}"')[0],
    f"\n{SHORT_ANSWER}",
    f"\n{OPTION_PROMPT}",
    with_options("", range(len(LETTERS))).removesuffix(f"\n{OPTION_PROMPT}"),
    " [",
    ", ",
)
PHRASE = re.compile(
    rf"(?:({'|'.join(HALF_EXTENT)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join([*SHAPES, 'object'])})(?:es|s)?\b"
)
OPTION = re.compile(rf"^([{LETTERS}])\. .*$", re.MULTILINE)
NUMBERS = tuple(str(hundredths / 100) for hundredths in range(101))

HARD = {"box": 3, "choice": 3, "count": 2, "option": 2}  # asked so often about a scene, where other kinds are once
SENTENCE_ROUNDS = 4  # questions about a scene in a sentence
NAMES = 8  # things that are named in a row
LENGTHS = (16, 22, 36, 512)  # tokens of a question and its answer: those up to a number are padded to one length


@dataclass
class Part:
    """Questions of about equal length.

    Attributes:
        input_ids: `[n, T]`.
        labels: `[n, T]`, of answers; -100 elsewhere.
        scene: `[n]`, which scene each is about.
        about: `[n, cells]`, how the things that each is about are spread over cells; 0 where there are none.
        named: `[m, 2]`, row and last token of every phrase that fits things of the scene.
        shown: `[m, cells]`, how those things are spread over cells.
        offered: `[k, 2]`, row and last token of every option.
        right: `[k]`, 1 where the option is the right one, else 0.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    scene: torch.Tensor
    about: torch.Tensor
    named: torch.Tensor
    shown: torch.Tensor
    offered: torch.Tensor
    right: torch.Tensor


@dataclass
class Batch:
    """Questions about scenes; `maps` is `[scenes, cells, looks]`, None where questions begin with a scene in words."""

    maps: torch.Tensor | None
    parts: list[Part]
    asked: list[list[Question]]  # of each part


def asked_about(things, rng: np.random.Generator) -> list[Question]:
    """Questions of all kinds about a scene, `HARD` ones several times."""
    rounds = [questions(things, rng) for _ in range(max(HARD.values()))]
    return [q for number, asked in enumerate(rounds) for q in asked if number < HARD.get(q.kind, 1)]


def map_batch(tokenizer, rng: np.random.Generator, scenes: int) -> Batch:
    """Fresh scenes as maps, with questions about each."""
    drawn = [sample_layout(rng) for _ in range(scenes)]
    rows = [(number, q, "") for number, things in enumerate(drawn) for q in asked_about(things, rng)]
    return _batch(tokenizer, rows, drawn)


def name_batch(tokenizer, rng: np.random.Generator, scenes: int) -> Batch:
    """Fresh scenes as maps, with phrases that name things that are there; nothing is asked."""
    drawn = [sample_layout(rng) for _ in range(scenes)]
    rows = [(number, Question("names", names(things, rng), ""), "") for number, things in enumerate(drawn)]
    return _batch(tokenizer, rows, drawn)


def names(things, rng: np.random.Generator) -> str:
    """Things of a scene by some of their looks, `NAMES` of them."""
    said = []
    for pick in rng.integers(len(things), size=NAMES):
        t = things[pick]
        ways = (t.name, t.shape, f"{t.colour} object", f"{t.size} {t.shape}", f"{t.size} {t.colour} object")
        said.append(ways[rng.integers(len(ways))])
    return ", ".join(said)


def sentence_batch(tokenizer, rng: np.random.Generator, scenes: int) -> Batch:
    """Fresh scenes in words, with some questions about each; none asks for a box, which is among the words."""
    rows = []
    for number in range(scenes):
        things = sample_layout(rng)
        asked = [q for q in questions(things, rng) if q.kind != "box"]
        chosen = rng.permutation(len(asked))[:SENTENCE_ROUNDS]
        rows += [(number, asked[i], f"{describe(things)} ") for i in chosen]
    return _batch(tokenizer, rows)


def _batch(tokenizer, rows: list[tuple[int, Question, str]], drawn=()) -> Batch:
    """Questions, with what is said before them, about scenes that are shown as maps if they are given."""
    maps = torch.from_numpy(np.stack([cell_contents(things) for things in drawn])) if drawn else None
    tokenized = []
    for scene, q, told in rows:
        answer = f" {q.answer}</s>" if q.kind == "box" else f"{q.answer}</s>"
        text = f"In: {told}{prompt(q)}\nOut:"
        both = tokenizer([text, answer], add_special_tokens=False)
        ids, target = both.input_ids
        start = [tokenizer.bos_token_id] if maps is None else []
        ends = (phrases(text, drawn[scene]), options(text, q)) if drawn else ({}, {})
        named, offered = ([(both.char_to_token(0, end - 1), told) for end, told in found.items()] for found in ends)
        tokenized.append((start + ids + target, [-100] * len(start + ids) + target, scene, q, named, offered))
    by_length: dict[int, list] = {}
    for row in tokenized:
        by_length.setdefault(next(length for length in LENGTHS if len(row[0]) <= length), []).append(row)
    parts, asked = [], []
    for _, alike in sorted(by_length.items()):
        ids, labels, scene, qs, *ends = zip(*alike, strict=True)
        padded = [
            pad_sequence([torch.tensor(row) for row in column], batch_first=True, padding_value=value)
            for column, value in ((ids, 0), (labels, -100))
        ]
        rest = [np.stack([spread(q.about) for q in qs])]
        for ends_of, shape in zip(ends, ((-1, CELLS**2), -1), strict=True):
            places = np.array([(row, token) for row, found in enumerate(ends_of) for token, _ in found], int)
            told = np.array([told for found in ends_of for _, told in found], np.float32)
            rest += [places.reshape(-1, 2), told.reshape(shape)]
        parts.append(Part(*padded, torch.tensor(scene), *map(torch.from_numpy, rest)))
        asked.append(list(qs))
    return Batch(maps, parts, asked)


def phrases(text: str, things) -> dict[int, np.ndarray]:
    """Where a text names things by their looks and some of those are there: end of the phrase, their `spread`."""
    found = {}
    for match in PHRASE.finditer(text):
        size, colour, shape = match.groups()
        fitting = [
            t for t in things if size in (None, t.size) and colour in (None, t.colour) and shape in ("object", t.shape)
        ]
        if fitting and (size or colour or shape != "object"):
            found[match.end()] = spread(fitting)
    return found


def options(text: str, q: Question) -> dict[int, bool]:
    """Where options end, of which one is right: end of the option, whether it is."""
    if q.kind not in ("choice", "option"):
        return {}
    return {match.end(): match[1] == q.answer for match in OPTION.finditer(text)}


def spread(things) -> np.ndarray:
    """How things are spread over cells, `[cells]`: sums to 1, or is 0 where there are none."""
    cover = sum((cover_of(thing) for thing in things), np.zeros(CELLS**2))
    return (cover / max(cover.sum(), 1e-9)).astype(np.float32)


def look_ids(tokenizer) -> torch.Tensor:
    """Token ids of `LOOKS`."""
    ids = tokenizer([f" {look}" for look in LOOKS], add_special_tokens=False).input_ids
    return torch.tensor([word[-1] for word in ids])


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE over the miniature language; words never merge, digits stand alone, `FIXED` are tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            pre_tokenizers.Split("\n", "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    rng = np.random.default_rng(seed)
    answers = [f" {answer}" for answer in ("True", "False", "background", *LETTERS)]
    texts = [WORDS, *FIXED, *answers] * 20
    for _ in range(2000):
        things = sample_layout(rng)
        texts += [describe(things), *(f"In: {prompt(q)}\nOut: {q.answer}" for q in questions(things, rng))]
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special))
    # Bytes must be plain vocabulary: as special tokens they would be dropped on decoding.
    rebuilt = Tokenizer(tokenizer.model)
    rebuilt.pre_tokenizer, rebuilt.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    rebuilt.add_special_tokens(["<unk>", "<s>", "</s>"])
    rebuilt.add_tokens([*FIXED, *NUMBERS])
    rebuilt.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", rebuilt.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
