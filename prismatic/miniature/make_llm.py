"""Makes the `miniature` LLM: tokenizer and weights of a tiny Llama taught to answer questions about scenes in words.

`python -m prismatic.miniature.make_llm` writes `prismatic/miniature/assets/llm`. The model reads a scene as a sentence
or as a map, one position for each cell: the sum of the words for what covers it, weighed by how much. Where a cell is
it must know by the order of positions, as it will with patches. Then come questions and answers in the `pure` prompt
style, which see the scene and not each other. So it knows the language and how to reason about places before it ever
sees an image, as a pretrained LLM does; what it lacks is eyes.

First it is asked `SIMPLE` questions only, of ever more things: else it stays for long at guessing from other answers.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import draccus
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismatic.miniature.language import (
    BOX_PROMPT,
    CELLS,
    KINDS,
    LETTERS,
    LOOKS,
    OPTION_PROMPT,
    SHORT_ANSWER,
    STATEMENT_PROMPT,
    Question,
    cell_contents,
    describe,
    prompt,
    questions,
    with_options,
)
from prismatic.miniature.scenes import MAX_OBJECTS, sample_layout
from prismatic.text.tokenizers import from_tokenizer_json

# Words of the real benchmarks that miniature questions lack.
WORDS = """Please provide a short description for this region: Yes No unanswerable inside near touching one two three
four zero many shape object picture image what where which"""
# Fixed parts of prompts, and of boxes, are one token each: a miniature run should spend its time on the scenes.
FIXED = (
    *(part.strip(" ") for part in STATEMENT_PROMPT.split("{}")),
    BOX_PROMPT.split(' "{}"')[0],
    f"\n{SHORT_ANSWER}",
    f"\n{OPTION_PROMPT}",
    with_options("", range(len(LETTERS))).removesuffix(f"\n{OPTION_PROMPT}"),
    " [0.",
    ", 0.",
)


HARDEST, HARDEST_ROUNDS = "choice", 2  # learned last, and asked so often more
SIMPLE, SIMPLE_ROUNDS = ("exists", "color", "shape", "size", "where"), 3  # what is asked first, so often about a scene


@dataclass
class Config:
    """Settings of the pretraining."""

    out: Path = Path("prismatic/miniature/assets/llm")  # where tokenizer, config and weights go
    steps: int = 2600  # optimizer steps
    start: Path | None = None  # earlier result to go on from
    simple_share: float = 0.25  # of the steps in which only `SIMPLE` questions are asked, of ever more things
    batch_size: int = 12  # documents a step, all fresh
    learning_rate: float = 0.01  # peak of Muon, for the matrices of the blocks; warmed up, then linear to 0
    embedding_rate: float = 2e-3  # peak of AdamW, for everything else
    weight_decay: float = 0.01  # of Muon
    hidden_size: int = 192  # width
    layers: int = 4  # depth
    vocab_size: int = 800  # tokens at most, bytes included
    seed: int = 0  # of the weights and of the scenes


@dataclass
class Document:
    """A scene, as a sentence or as a map, and questions about it."""

    text: str | None  # the sentence; None for a map
    contents: np.ndarray  # of the map, `[cells, looks]`
    asked: list[Question]


def document(rng: np.random.Generator, as_map: bool, simple: bool = False, max_objects: int = MAX_OBJECTS) -> Document:
    """A fresh scene and questions about it, only `SIMPLE` ones if wanted."""
    things = sample_layout(rng, max_objects=max_objects)
    text = None if as_map else describe(things)
    if simple:
        asked = [q for _ in range(SIMPLE_ROUNDS) for q in questions(things, rng) if q.kind in SIMPLE]
    else:
        boxes = rng.random() < 0.5
        asked = [q for q in questions(things, rng) if boxes or q.kind != "box"]
        asked += [q for _ in range(HARDEST_ROUNDS) for q in questions(things, rng) if q.kind == HARDEST]
    return Document(text, cell_contents(things), asked)


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
    options = [f" {option}" for option in ("True", "False", *LETTERS)]
    texts = [WORDS, *FIXED, *options] * 20
    for _ in range(2000):
        told = document(rng, as_map=False)
        texts += [told.text, *(f"In: {prompt(q)}\nOut: {q.answer}" for q in told.asked)]
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special))
    # Bytes must be plain vocabulary: as special tokens they would be dropped on decoding.
    rebuilt = Tokenizer(tokenizer.model)
    rebuilt.pre_tokenizer, rebuilt.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    rebuilt.add_special_tokens(["<unk>", "<s>", "</s>"])
    rebuilt.add_tokens(list(FIXED))
    rebuilt.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", rebuilt.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


@dataclass
class Batch:
    """Scenes with their questions, padded, all `[B, T, ...]`. Questions see the scene and not each other."""

    input_ids: torch.Tensor
    labels: torch.Tensor  # what is to be predicted from the position before; -100 for all but answers
    position_ids: torch.Tensor  # every question goes on where the scene ends
    cells: torch.Tensor  # cell of a map that a position stands for, from 1; 0 for none
    contents: torch.Tensor  # of that cell, `[B, T, looks]`
    turns: torch.Tensor  # which question a position belongs to, from 1; 0 for the scene, -1 for padding

    @property
    def mask(self) -> torch.Tensor:
        """What sees what, bool `[B, 1, T, T]`."""
        queries, keys = self.turns[:, :, None], self.turns[:, None]
        return ((keys == queries) | (keys == 0)).tril()[:, None]


def batch_of(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> Batch:
    """Documents as tokens, of which answers are to be predicted."""
    columns = [[] for _ in fields(Batch)]
    for told in documents:
        if told.text is None:
            ids, cells = [tokenizer.bos_token_id] + [0] * CELLS**2, list(range(CELLS**2 + 1))
        else:
            ids = tokenizer(told.text).input_ids
            cells = [0] * len(ids)
        scene = len(ids)
        target, places, turn = [-100] * scene, list(range(scene)), [0] * scene
        for number, q in enumerate(told.asked, start=1):
            said = tokenizer([f"In: {prompt(q)}\nOut:", f"{q.answer}</s>"], add_special_tokens=False).input_ids
            target += [*([-100] * len(said[0])), *said[1]]
            more = len(said[0]) + len(said[1])
            places += range(scene, scene + more)
            turn += [number] * more
            ids = ids + said[0] + said[1]
        cells += [0] * (len(ids) - len(cells))
        contents = np.concatenate([np.zeros((1, len(LOOKS)), np.float32), told.contents])[cells]
        for column, more in zip(columns, (ids, target, places, cells, contents, turn), strict=True):
            column.append(torch.from_numpy(np.array(more)))
    padding = (0, -100, 0, 0, 0.0, -1)
    return Batch(*(pad_sequence(c, batch_first=True, padding_value=p) for c, p in zip(columns, padding, strict=True)))


class Batches(IterableDataset):
    """Fresh batches of documents, one for each step; one in eight scenes is told in a sentence."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config, self.tokenizer = config, tokenizer

    def __iter__(self):
        rng = np.random.default_rng(self.config.seed)
        for step in range(self.config.steps):
            simple = step < self.config.simple_share * self.config.steps
            share = step / (self.config.simple_share * self.config.steps) if simple else 1.0
            most = min(MAX_OBJECTS, 1 + int(2 * MAX_OBJECTS * share))
            documents = [document(rng, rng.random() >= 1 / 8, simple, most) for _ in range(self.config.batch_size)]
            yield batch_of(self.tokenizer, documents)


def predict(model: LlamaForCausalLM, batch: Batch, looks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[n, words]` and the n tokens that they are to predict; `looks` are the tokens of `LOOKS`."""
    words = model.get_input_embeddings()
    seen = 2 * batch.contents.sqrt() @ words(looks)
    embedded = words(batch.input_ids) * (batch.cells == 0)[..., None] + seen
    hidden = model.model(
        inputs_embeds=embedded, position_ids=batch.position_ids, attention_mask=batch.mask, use_cache=False
    )
    wanted = batch.labels[:, 1:] != -100
    return model.lm_head(hidden.last_hidden_state[:, :-1][wanted]), batch.labels[:, 1:][wanted]


def fresh(config: Config, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=int(config.hidden_size * 8 / 3 // 16 * 16),
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden_size // 32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=config.hidden_size**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def main(config: Config) -> None:
    """Trains and writes tokenizer and weights; prints the accuracy of answer tokens given the scene in words."""
    torch.manual_seed(config.seed)
    if config.start:
        tokenizer = from_tokenizer_json(config.start)
        model = LlamaForCausalLM.from_pretrained(config.start, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(config.vocab_size, config.seed)
        model = fresh(config, tokenizer)
    looks = tokenizer([f" {look}" for look in LOOKS], add_special_tokens=False).input_ids
    looks = torch.tensor(looks)[:, -1]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [model.get_input_embeddings().weight, *(p for p in model.parameters() if p.ndim < 2)]
    optimizers = (
        torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 100, 1 - step / config.steps))
        for o in optimizers
    ]
    batches = DataLoader(Batches(config, tokenizer), batch_size=None, num_workers=1, prefetch_factor=8)
    progress = tqdm(batches, total=config.steps, desc="answers")
    for step, batch in enumerate(progress, start=1):
        loss = F.cross_entropy(*predict(model, batch, looks))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        model.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if step % 250 == 0:
            right = answer_accuracy(model, tokenizer, looks)
            tqdm.write(f"step {step}: " + ", ".join(f"{kind} {share:.2f}" for kind, share in right.items()))
    tokenizer.save_pretrained(config.out)
    model.half().save_pretrained(config.out)
    print(f"wrote {config.out}")


@torch.inference_mode()
def answer_accuracy(model, tokenizer: PreTrainedTokenizerFast, looks: torch.Tensor, count: int = 192) -> dict:
    """Share of answers whose every token is predicted from the map of a scene, by kind and in all, on fresh maps."""
    rng = np.random.default_rng(987_654)
    documents = [document(rng, as_map=True) for _ in range(count)]
    right = {kind: [] for kind in (*KINDS, "all")}
    logits, target = predict(model, batch_of(tokenizer, documents), looks)
    hits = logits.argmax(-1) == target
    ends = (1 + (target == tokenizer.eos_token_id).nonzero().flatten()).tolist()
    for question, first, end in zip((q for told in documents for q in told.asked), [0, *ends], ends, strict=False):
        right[question.kind].append(hits[first:end].all().item())
    right["all"] = [hit for hits in right.values() for hit in hits]
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


if __name__ == "__main__":
    main(draccus.parse(Config))
