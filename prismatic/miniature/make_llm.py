"""Makes the `miniature` LLM: tokenizer and weights of a tiny Llama taught to answer questions about scenes in words.

`python -m prismatic.miniature.make_llm` writes `prismatic/miniature/assets/llm`. The model reads a scene as a map, one
position for each cell: the sum of the words for what covers it, weighed by how much; or, one step in eight, as a
sentence. Then comes a question in the `pure` prompt style. So it knows the language and how to reason about places
before it ever sees an image, as a pretrained LLM does; what it lacks is eyes.

Where a cell is it must know by the order of positions, as it will with patches. What makes that learnable within hours
are losses, in training only, on what a linear map tells from hidden states: row and column of a cell after the first
block; after the second, the cells of what a phrase names; after the last but one, the cells of what is asked about, and
whether an option is right. The first steps ask nothing: rows of phrases name things, `NAMES` in a row, so that naming
is learned from many at a time. Numbers are tokens, whose first embeddings are the nearer the nearer the numbers are,
with a loss on their distance.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset
from torchvision.ops import box_iou
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismatic.miniature.documents import (
    NUMBERS,
    Batch,
    look_ids,
    map_batch,
    name_batch,
    sentence_batch,
    train_tokenizer,
)
from prismatic.miniature.language import CELLS
from prismatic.miniature.making import check_settings, read_settings
from prismatic.miniature.scenes import IMAGE_SIZE
from prismatic.training.loop import keep_freed_memory

SENTENCES = 8  # one step in so many is about scenes in words
PLACED, NAMED = 1, 2  # blocks after which a cell's place, and what a phrase names, are told from the states
HEAD = 32  # width of a head of attention
WIDTHS = (1.5, 8.0)  # pixels by which numbers differ whose first embeddings have a similarity of exp(-1/2), by half


@dataclass
class Config:
    """Settings of the pretraining."""

    out: Path = Path("prismatic/miniature/assets/llm")  # where tokenizer, config and weights go
    steps: int = 4000  # optimizer steps
    naming_steps: int = 300  # of them, the first, in which nothing is asked
    scenes: int = 12  # scenes a step, all fresh; twice as many where nothing is asked
    learning_rate: float = 0.007  # peak of Muon, for the matrices of the blocks; warmed up, then linear to 0
    embedding_rate: float = 1e-3  # peak of AdamW, for everything else
    weight_decay: float = 0.01  # of Muon
    distance_weight: float = 0.1  # in the loss, of the expected distance of a number from the right one, in pixels
    place_weight: float = 1.0  # in the loss, of the squared error of rows and columns, in cells
    point_weight: float = 1.0  # in the loss, of the cross-entropy of cells pointed at, by phrases and by questions
    option_weight: float = 1.0  # in the loss, of the cross-entropy of whether an option is right
    hidden_size: int = 192  # width
    layers: int = 5  # depth
    vocab_size: int = 800  # tokens at most, bytes included, numbers and fixed parts of prompts not
    seed: int = 0  # of the weights and of the scenes


def check(config: Config) -> None:
    """Raises ValueError for settings that no model can be made with."""
    check_settings(config, naming_steps=0, layers=NAMED)
    if config.hidden_size % HEAD:
        raise ValueError(f"--hidden_size is {config.hidden_size}: expected a multiple of {HEAD}, the width of a head")


class Batches(IterableDataset):
    """Fresh batches, one for each step."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config, self.tokenizer = config, tokenizer

    def __iter__(self):
        config, rng = self.config, np.random.default_rng(self.config.seed)
        for step in range(config.steps):
            if step < config.naming_steps:
                yield name_batch(self.tokenizer, rng, 2 * config.scenes)
            elif step % SENTENCES == SENTENCES - 1:
                yield sentence_batch(self.tokenizer, rng, config.scenes)
            else:
                yield map_batch(self.tokenizer, rng, config.scenes)


States = tuple[torch.Tensor, ...]


class Reader:
    """A Llama, and the maps and numbers that it reads and writes.

    Attributes:
        model: The Llama.
        looks: Token ids of `LOOKS`.
        numbers: Token ids of `NUMBERS`.
        number_of: By token id, its place in `NUMBERS`; -1 of other tokens.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.looks = model, look_ids(tokenizer)
        self.bos = torch.tensor([tokenizer.bos_token_id])
        self.numbers = torch.tensor(tokenizer.convert_tokens_to_ids(list(NUMBERS)))
        self.number_of = torch.full((len(tokenizer),), -1)
        self.number_of[self.numbers] = torch.arange(len(NUMBERS))
        self.pixels = torch.arange(len(NUMBERS)) / (len(NUMBERS) - 1) * IMAGE_SIZE
        width = model.config.hidden_size
        self.place = torch.nn.Linear(width, 2)
        self.point, self.name = torch.nn.Linear(width, CELLS**2), torch.nn.Linear(width, CELLS**2)
        self.fits = torch.nn.Linear(width, 1)
        rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        self.places = torch.stack([rows.flatten(), columns.flatten()], 1) - (CELLS - 1) / 2

    def hidden(self, batch: Batch) -> tuple[list[States], States | None]:
        """Hidden states after every block, `[n, T, D]` each: of the parts, and of the maps if there are any.

        Maps are read once for all of their questions. The last states are those after the final norm.
        """
        words, decoder = self.model.get_input_embeddings(), self.model.model
        if batch.maps is None:
            read = (decoder(p.input_ids, use_cache=False, output_hidden_states=True) for p in batch.parts)
            return [states.hidden_states for states in read], None
        seen = 2 * batch.maps.sqrt() @ words(self.looks)
        scenes = DynamicCache(config=self.model.config)
        start = words(self.bos).expand(len(seen), 1, -1)
        read = decoder(
            inputs_embeds=torch.cat([start, seen], 1), cache=scenes, use_cache=True, output_hidden_states=True
        )
        found = []
        for part in batch.parts:
            cache = DynamicCache(config=self.model.config)
            for number, layer in enumerate(scenes.layers):
                cache.update(layer.keys[part.scene], layer.values[part.scene], number)
            said = decoder(part.input_ids, cache=cache, use_cache=True, output_hidden_states=True)
            found.append(said.hidden_states)
        return found, read.hidden_states

    def loss(self, batch: Batch, config: Config) -> torch.Tensor:
        """Cross-entropy of answers, expected distance of numbers in pixels, and what states should tell but do not."""
        hidden, maps = self.hidden(batch)
        wanted = [part.labels[:, 1:] != -100 for part in batch.parts]
        states = torch.cat([h[-1][:, :-1][w] for h, w in zip(hidden, wanted, strict=True)])
        target = torch.cat([part.labels[:, 1:][w] for part, w in zip(batch.parts, wanted, strict=True)])
        logits, numbers = self.model.lm_head(states), self.number_of[target] >= 0
        loss = F.cross_entropy(logits, target)
        if maps is not None:
            loss = loss + config.place_weight * (self.place(maps[PLACED][:, 1:]) - self.places).square().mean()
            asked = [h[-2][torch.arange(len(w)), w.int().argmax(1)] for h, w in zip(hidden, wanted, strict=True)]
            named = [h[NAMED][tuple(part.named.T)] for h, part in zip(hidden, batch.parts, strict=True)]
            about, shown = (torch.cat([getattr(part, name) for part in batch.parts]) for name in ("about", "shown"))
            missed = cells_missed(self.point(torch.cat(asked)), about)
            missed = missed + cells_missed(self.name(torch.cat(named)), shown)
            loss = loss + config.point_weight * missed
            offered = torch.cat([h[-2][tuple(part.offered.T)] for h, part in zip(hidden, batch.parts, strict=True)])
            if len(offered):
                right = torch.cat([part.right for part in batch.parts])
                told = F.binary_cross_entropy_with_logits(self.fits(offered)[:, 0], right)
                loss = loss + config.option_weight * told
        if numbers.any():
            right = self.pixels[self.number_of[target[numbers]]]
            distance = (self.pixels - right[:, None]).abs()
            expected = (logits[numbers].softmax(-1)[:, self.numbers] * distance).sum(-1)
            loss = loss + config.distance_weight * expected.mean()
        return loss

    def write(self, batch: Batch) -> list[torch.Tensor]:
        """Token ids `[n, T]` of each part likeliest after those before them, of boxes after those predicted."""
        found = self._next(batch)
        for part, said in zip(batch.parts, found, strict=True):
            numbers = (self.number_of[part.input_ids] >= 0) & (part.labels != -100)
            rows = numbers.any(1).nonzero().flatten()
            boxes = dataclasses.replace(
                part, input_ids=part.input_ids[rows], labels=part.labels[rows], scene=part.scene[rows]
            )
            for _ in range(3 if len(rows) else 0):  # the first edge is there: one more each time
                boxes.input_ids = torch.where(numbers[rows], said[rows], boxes.input_ids)
                (said[rows],) = self._next(Batch(batch.maps, [boxes], []))
        return found

    def _next(self, batch: Batch) -> list[torch.Tensor]:
        said = [self.model.lm_head(hidden[-1]).argmax(-1) for hidden in self.hidden(batch)[0]]
        return [torch.cat([part.input_ids[:, :1], ids[:, :-1]], 1) for part, ids in zip(batch.parts, said, strict=True)]


def cells_missed(logits: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `logits` against the distributions `cells`, both `[n, cells]`, those of zeros left out."""
    return -(logits.log_softmax(-1) * cells).sum() / cells.sum().clamp(min=1)


def fresh(config: Config, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model with random weights, but for numbers, which are the more alike the nearer they are."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=int(config.hidden_size * 8 / 3 // 16 * 16),
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden_size // HEAD,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=config.hidden_size**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    reader = Reader(model, tokenizer)
    # Random Fourier features, whose products fall with the distance as a Gaussian does.
    width = torch.tensor(WIDTHS).repeat_interleave(config.hidden_size // len(WIDTHS))
    phases = reader.pixels[:, None] / width * torch.randn(config.hidden_size)
    phases = phases + 2 * math.pi * torch.rand(config.hidden_size)
    for name, parameter in model.model.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # what blocks add to the states
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.08)
    with torch.no_grad():
        model.get_input_embeddings().weight[reader.numbers] = phases.cos() * (2 / config.hidden_size) ** 0.5
    return model


def main(config: Config) -> None:
    """Trains and writes tokenizer and weights; prints, as it goes, the accuracy on maps."""
    config.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(config.vocab_size, config.seed)
    model = fresh(config, tokenizer)
    reader = Reader(model, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [model.get_input_embeddings().weight, *(p for p in model.parameters() if p.ndim < 2)]
    others += [*reader.place.parameters(), *reader.point.parameters(), *reader.name.parameters()]
    others += reader.fits.parameters()
    optimizers = (
        torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 50, 1 - step / config.steps))
        for o in optimizers
    ]
    batches = DataLoader(Batches(config, tokenizer), batch_size=None, num_workers=1, prefetch_factor=8)
    progress = tqdm(batches, total=config.steps, desc="pretraining", mininterval=2)
    for step, batch in enumerate(progress, start=1):
        loss = reader.loss(batch, config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        model.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % 250 == 0 or step == config.steps:
            right = accuracy(reader, tokenizer)
            tqdm.write(f"step {step}: " + ", ".join(f"{kind} {share:.3f}" for kind, share in right.items()))
    tokenizer.save_pretrained(config.out)
    model.half().save_pretrained(config.out)
    print(f"wrote {config.out}")


@torch.inference_mode()
def accuracy(
    reader: Reader, tokenizer: PreTrainedTokenizerFast, scenes: int = 96, seed: int = 987_654
) -> dict[str, float]:
    """Share of right answers about fresh maps by kind, greedy; a box is right where its IoU is at least 0.5."""
    rng, right = np.random.default_rng(seed), {}
    for _ in range(0, scenes, 32):
        batch = map_batch(tokenizer, rng, 32)
        for part, asked, ids in zip(batch.parts, batch.asked, reader.write(batch), strict=True):
            for q, said, labels in zip(asked, ids, part.labels, strict=True):
                wanted = labels != -100
                hit = torch.equal(said[wanted], labels[wanted])
                if q.kind == "box" and not hit:
                    edges, true = (
                        reader.pixels[n[n >= 0]] for n in (reader.number_of[t[wanted]] for t in (said, labels))
                    )
                    hit = len(edges) == 4 and box_iou(edges[None], true[None]).item() >= 0.5
                right.setdefault(q.kind, []).append(hit)
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


if __name__ == "__main__":
    main(read_settings(Config, check))
