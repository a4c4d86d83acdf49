"""Makes the `miniature` LLM: tokenizer and weights of a tiny Llama taught to answer questions about scenes in words.

`python -m prismatic.miniature.make_llm` writes `prismatic/miniature/assets/llm`. The model reads a scene as a sentence
or as a map of words (`language.map_words`), to which learned places are added as position embeddings are to patches;
then questions and answers in the `pure` prompt style. So it knows the language and how to reason about places before it
ever sees an image, as a pretrained LLM does; what it lacks is eyes. The places are thrown away.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import draccus
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismatic.miniature.language import (
    BOX_PROMPT,
    CELLS,
    KINDS,
    LETTERS,
    OPTION_PROMPT,
    SHORT_ANSWER,
    STATEMENT_PROMPT,
    Question,
    conversation,
    describe,
    map_words,
    turns,
    with_options,
)
from prismatic.miniature.scenes import sample_layout
from prismatic.models.attention import SEGMENTED, segment_lengths
from prismatic.models.tokenizers import from_tokenizer_json

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


@dataclass
class Config:
    """Settings of the pretraining."""

    out: Path = Path("prismatic/miniature/assets/llm")  # where tokenizer, config and weights go
    language_steps: int = 4000  # optimizer steps on questions and answers
    answer_steps: int = 3200  # further steps on answers alone, which is where places are reasoned about
    start: Path | None = None  # earlier result to go on from, its words taken over
    batch_size: int = 24  # documents a step, all fresh
    learning_rate: float = 2e-3  # peak, after 100 steps of warm-up; cosine to 0
    weight_decay: float = 0.05  # AdamW
    hidden_size: int = 128  # width
    layers: int = 4  # depth
    vocab_size: int = 800  # tokens at most, bytes included
    seed: int = 0  # of the weights and of the scenes


Document = tuple[str, bool, list[Question]]  # a scene in words, whether these are a map, questions about it


def document(rng: np.random.Generator, as_map: bool) -> Document:
    """A scene as a map or as a sentence, and questions about it."""
    things = sample_layout(rng)
    words = " ".join(map_words(things)) if as_map else describe(things)
    return words, as_map, conversation(things, rng, boxes=rng.random() < 0.3)


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
    for number in range(2000):
        words, _, asked = document(rng, as_map=number % 2 == 0)
        texts += [words, *(f"In: {q}\nOut: {a}" for q, a in turns(asked))]
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
    """Documents one after another without padding, all `[1, T]`."""

    input_ids: torch.Tensor
    labels: torch.Tensor  # what is to be predicted from the position before; -100 for the scene itself
    position_ids: torch.Tensor  # from 0 in every document
    cells: torch.Tensor  # cell of the map that a token stands for, from 1; 0 for none


def batch_of(tokenizer: PreTrainedTokenizerFast, documents: list[Document], answers_only: bool) -> Batch:
    """Documents as tokens; questions are predicted too unless `answers_only`."""
    rows = []
    for words, is_map, asked in documents:
        ids = tokenizer(words).input_ids
        target, cells = [-100] * len(ids), list(range(len(ids))) if is_map else []
        for question, answer in turns(asked):
            turn = tokenizer([f"In: {question}\nOut:", f"{answer}</s>"], add_special_tokens=False).input_ids
            target += [*([-100] * len(turn[0]) if answers_only else turn[0]), *turn[1]]
            ids = ids + turn[0] + turn[1]
        rows.append((ids, target, range(len(ids)), cells + [0] * (len(ids) - len(cells))))
    return Batch(*(torch.tensor([[t for part in parts for t in part]]) for parts in zip(*rows, strict=True)))


def predict(model: LlamaForCausalLM, batch: Batch, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[n, words]` and the n tokens that they are to predict; `places` `[cells, D]` are added to map cells."""
    embedded = model.get_input_embeddings()(batch.input_ids) + F.pad(places, (0, 0, 1, 0))[batch.cells]
    lengths = segment_lengths(batch.position_ids)
    hidden = model.model(
        inputs_embeds=embedded, position_ids=batch.position_ids, use_cache=False, segment_lengths=lengths
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
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def grown(start: Path, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An earlier model with the words of a new tokenizer; a new word is the mean of the old ones it consists of."""
    model, earlier = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32), from_tokenizer_json(start)
    old = model.get_input_embeddings().weight.detach().clone()
    rows = []
    for word in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
        known = earlier.get_vocab().get(word)
        parts = [known] if known is not None else earlier(word.replace("▁", " "), add_special_tokens=False).input_ids
        rows.append(old[parts].mean(0))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(torch.stack(rows))
    return model


def main(config: Config) -> None:
    """Trains and writes tokenizer and weights; prints the accuracy of answer tokens given the scene in words."""
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(config.vocab_size, config.seed)
    model = grown(config.start, tokenizer) if config.start else fresh(config, tokenizer)
    model.set_attn_implementation(SEGMENTED)
    scale = model.get_input_embeddings().weight.std().item()
    rows, columns = (torch.nn.Parameter(scale * torch.randn(CELLS, config.hidden_size)) for _ in range(2))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [rows, columns, *(p for p in model.parameters() if p.ndim < 2)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    for phase, steps in (("language", config.language_steps), ("answers", config.answer_steps)):
        rng = np.random.default_rng((config.seed, len(phase)))
        progress = tqdm(range(steps), desc=phase)
        for step in progress:
            rate = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            documents = [document(rng, as_map=rng.random() >= 1 / 8) for _ in range(config.batch_size)]
            batch = batch_of(tokenizer, documents, answers_only=phase == "answers")
            loss = F.cross_entropy(*predict(model, batch, rows[:, None].add(columns).flatten(0, 1)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % 200 == 0:
                right = answer_accuracy(model, tokenizer, rows[:, None].add(columns).flatten(0, 1))
                tqdm.write(f"step {step + 1}: " + ", ".join(f"{kind} {share:.2f}" for kind, share in right.items()))
    tokenizer.save_pretrained(config.out)
    model.half().save_pretrained(config.out)
    print(f"wrote {config.out}")


@torch.inference_mode()
def answer_accuracy(model, tokenizer: PreTrainedTokenizerFast, places: torch.Tensor, count: int = 192) -> dict:
    """Share of answers whose every token is predicted from the map of a scene, by kind and in all, on fresh maps."""
    rng = np.random.default_rng(987_654)
    documents = [document(rng, as_map=True) for _ in range(count)]
    right = {kind: [] for kind in (*KINDS, "all")}
    logits, target = predict(model, batch_of(tokenizer, documents, answers_only=True), places)
    hits = logits.argmax(-1) == target
    ends = (1 + (target == tokenizer.eos_token_id).nonzero().flatten()).tolist()
    for question, first, end in zip((q for *_, asked in documents for q in asked), [0, *ends], ends, strict=False):
        right[question.kind].append(hits[first:end].all().item())
    right["all"] = [hit for hits in right.values() for hit in hits]
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


if __name__ == "__main__":
    main(draccus.parse(Config))
