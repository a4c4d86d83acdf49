"""Tokenizers whose ids are the reference's, token for token.

Since version 5 transformers builds a Llama tokenizer anew from its vocabulary, which loses the merges' scores and the
normalizer, and gives other ids. Here a `tokenizer.json` is taken untouched, and a `tokenizer.model` converted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What kinds of sentencepiece models differ in: white space, letters outside the vocabulary, ligatures, digits.
_PROBES = ("Is it raining?", "  two  spaces ", "naïve 你好 😀 ﬁ", "x = 12345;\n\ty != 0.5")


def from_tokenizer_json(source: str | Path) -> "PreTrainedTokenizerFast":
    """Tokenizer exactly as a `tokenizer.json` describes it, whatever the model's type.

    Args:
        source: the file, or a folder or Hugging Face id that holds it; those also say which tokens are special.
    """
    from transformers import PreTrainedTokenizerFast

    if Path(source).is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(source))
    return PreTrainedTokenizerFast.from_pretrained(source)


def from_sentencepiece(model_file: str | Path) -> "PreTrainedTokenizerFast":
    """Tokenizer with the ids of a BPE sentencepiece model, as Llama, Vicuna and Mistral ship it (`tokenizer.model`).

    Writes BOS in front. Survives `save_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: if the file is absent, or sentencepiece itself splits text in another way (a model of another kind).
    """
    if not Path(model_file).is_file():
        raise ValueError(f"no sentencepiece model at {model_file}")
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    bos, eos, unk = (pieces.id_to_piece(i) for i in (pieces.bos_id(), pieces.eos_id(), pieces.unk_id()))

    tokenizer = Tokenizer(models.BPE(ids, list(_merges(pieces, ids)), unk_token=unk, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, pieces.bos_id())]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (unk, bos, eos)])

    for text in _PROBES:
        ours, theirs = tokenizer.encode(text, add_special_tokens=False).ids, pieces.encode(text)
        if ours != theirs:
            raise ValueError(
                f"{model_file} splits {text!r} into {theirs}, a Llama-style BPE model into {ours}: convert it with "
                "transformers and save a tokenizer.json beside it"
            )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token=unk)


def _merges(pieces, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs that make up a piece, best piece first, as sentencepiece's BPE picks them."""
    words = [
        (piece, pieces.get_score(i))
        for piece, i in ids.items()
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
    ]
    for piece, _ in sorted(words, key=lambda word: -word[1]):
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = (pair for pair in pairs if pair[0] in ids and pair[1] in ids)
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
