"""Makes the `miniature` LLM: tokenizer and weights of a tiny Llama taught to answer questions about scenes in words.

`python -m prismatic.miniature.make_llm` writes `prismatic/miniature/assets/llm` (about 50 minutes on two cores). It
reads scenes only as text, either as a sentence or as a map of words (`language.map_words`), followed by questions and
answers in the `pure` prompt style. So it knows the language and how to reason about places before it ever sees an
image, as a pretrained LLM does; what it lacks is eyes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import draccus
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismatic.miniature.language import describe, map_words, questions, turns
from prismatic.miniature.scenes import sample_layout

# Phrases of the real benchmarks' prompts, so that they cost few tokens in the miniature world too.
PHRASES = """Based on the image, is this statement "True" or "False"? Respond with "True" or "False" directly.
Answer with the option's letter from the given choices directly.
Please provide the bounding box coordinate of the region this sentence describes: "the red circle"
Please provide a short description for this region: [0.12, 0.5, 0.33, 0.9]. Yes No unanswerable
A. B. C. D. E. F. G. H. I. J. K. L. M. N. O. P. left right above below inside near touching
one two three four zero many shape object picture image what where which color"""


@dataclass
class Config:
    """Settings of the pretraining."""

    out: Path = Path("prismatic/miniature/assets/llm")  # where tokenizer, config and weights go
    language_steps: int = 4000  # optimizer steps on questions and answers
    answer_steps: int = 3200  # further steps on answers alone, which is where places are reasoned about
    batch_size: int = 24  # documents a step, all fresh
    learning_rate: float = 2e-3  # peak, after 100 steps of warm-up; cosine to 0
    weight_decay: float = 0.05  # AdamW
    hidden_size: int = 128  # width
    layers: int = 4  # depth
    vocab_size: int = 640  # tokens, bytes included
    seed: int = 0  # of the weights and of the scenes


def document(rng: np.random.Generator, as_map: bool) -> tuple[str, list[tuple[str, str]]]:
    """A scene in words, as a map or as a sentence, and the questions and answers about it."""
    things = sample_layout(rng)
    words = " ".join(map_words(things)) if as_map else describe(things)
    asked = [q for q in questions(things, rng) if q.kind != "box" or rng.random() < 0.3]
    return words, turns([asked[i] for i in rng.permutation(len(asked))])


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE over the miniature language; words never merge, digits stand alone."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    rng = np.random.default_rng(seed)
    texts = [PHRASES] * 20
    for number in range(2000):
        words, said = document(rng, as_map=number % 2 == 0)
        texts += [words, *(f"In: {q}\nOut: {a}" for q, a in said)]
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special))
    # Bytes must be plain vocabulary: as special tokens they would be dropped on decoding.
    rebuilt = Tokenizer(tokenizer.model)
    rebuilt.pre_tokenizer, rebuilt.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    rebuilt.add_special_tokens(["<unk>", "<s>", "</s>"])
    rebuilt.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", rebuilt.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def batch_of(
    tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, size: int, answers_only: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels `[B, T]`, right padded; the scene itself is not to be predicted (-100).

    One batch in eight holds sentences, the others maps: rows of a batch are about equally long.
    """
    rows, labels = [], []
    as_map = rng.random() >= 1 / 8
    for _ in range(size):
        words, conversation = document(rng, as_map)
        ids = tokenizer(words).input_ids
        target = [-100] * len(ids)
        for question, answer in conversation:
            turn = tokenizer([f"In: {question}\nOut:", f"{answer}</s>"], add_special_tokens=False).input_ids
            asked = [-100] * len(turn[0]) if answers_only else turn[0]
            ids, target = ids + turn[0] + turn[1], target + asked + turn[1]
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor(target))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=-100)


def main(config: Config) -> None:
    """Trains and writes tokenizer and weights; prints the accuracy of answer tokens given the scene in words."""
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(config.vocab_size, config.seed)
    model = LlamaForCausalLM(
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
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    for phase, steps in (("language", config.language_steps), ("answers", config.answer_steps)):
        rng = np.random.default_rng((config.seed, len(phase)))
        progress = tqdm(range(steps), desc=phase)
        for step in progress:
            rate = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            input_ids, labels = batch_of(tokenizer, rng, config.batch_size, answers_only=phase == "answers")
            loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % 200 == 0:
                tqdm.write(f"step {step + 1}: loss {loss.item():.4f}, answers {answer_accuracy(model, tokenizer):.3f}")
    tokenizer.save_pretrained(config.out)
    model.half().save_pretrained(config.out)
    print(f"wrote {config.out}")


@torch.inference_mode()
def answer_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 128) -> float:
    """Share of answers whose every token is predicted from the scene in words, over fresh documents."""
    rng = np.random.default_rng(987_654)
    input_ids, _ = batch_of(tokenizer, rng, count, answers_only=True)
    guessed = model(input_ids=input_ids).logits.argmax(-1)[:, :-1] == input_ids[:, 1:]
    out, end = tokenizer("In: Q\nOut:").input_ids[-2:], tokenizer.eos_token_id
    right = total = 0
    for ids, hits in zip(input_ids.tolist(), guessed.tolist(), strict=True):
        start = None
        for position in range(len(out), len(ids)):
            if ids[position - len(out) : position] == out and start is None:
                start = position
            if ids[position] == end and start is not None:
                right, total, start = right + all(hits[start - 1 : position]), total + 1, None
    return right / total


if __name__ == "__main__":
    main(draccus.parse(Config))
