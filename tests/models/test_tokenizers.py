import random

import pytest
import sentencepiece
from golden_cases import golden_dir, requires_golden
from small_tokenizers import CORPUS, mistral_model_file, requires_mistral, train_sentencepiece
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, PreTrainedTokenizerFast

from prismatic.text.tokenizers import from_sentencepiece, from_tokenizer_json

TEXTS = [*CORPUS[:5], "", " ", "  two  spaces \n\n", "naïve café 你好 😀", "x=12345;\ty!=0.5", "▁ literal ▁▁"]


def random_texts(seed: int, count: int = 200) -> list[str]:
    rng = random.Random(seed)
    alphabet = "aaeeiioonnttrrsshh    ,.?!\n\tABCXYZ0123456789é你好😀ß▁<>/|[]_"
    return ["".join(rng.choices(alphabet, k=rng.randrange(1, 80))) for _ in range(count)]


def assert_same_as_sentencepiece(model_file):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    ours = from_sentencepiece(model_file)
    for text in TEXTS + random_texts(seed=1):
        ids = theirs.encode(text)
        assert ours(text, add_special_tokens=False).input_ids == ids, text
        assert ours(text).input_ids == [theirs.bos_id(), *ids]
        assert ours.decode(ids) == theirs.decode(ids)


def test_ids_are_sentencepieces(tmp_path):
    assert_same_as_sentencepiece(train_sentencepiece(tmp_path))


@requires_mistral
def test_ids_of_a_real_model_are_sentencepieces():
    assert_same_as_sentencepiece(mistral_model_file())


@requires_golden
def test_converted_model_equals_the_references_tokenizer():
    folder = golden_dir() / "B_prismatic" / "B3_tokenisation"
    converted = from_sentencepiece(folder / "tiny_tokenizer.model")
    reference = from_tokenizer_json(folder / "tiny_tokenizer.json")
    for text in TEXTS + random_texts(seed=2) + ["</s> tricky <s> tokens", "ok</s></s> <unk>x"]:
        assert converted(text).input_ids == reference(text).input_ids, text


@pytest.mark.parametrize("config", [None, LlamaConfig(), MistralConfig()], ids=["bare", "llama", "mistral"])
def test_saving_and_reloading_keeps_every_id(tmp_path, config):
    tokenizer = from_sentencepiece(train_sentencepiece(tmp_path))
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    folder = tmp_path / "saved"
    tokenizer.save_pretrained(folder)
    if config is not None:
        config.save_pretrained(folder)
    for reloaded in (AutoTokenizer.from_pretrained(folder), from_tokenizer_json(folder)):
        assert reloaded.special_tokens_map == tokenizer.special_tokens_map
        for text in TEXTS + random_texts(seed=3) + ["</s> a <s> b <PAD> c"]:
            assert reloaded(text).input_ids == tokenizer(text).input_ids, text


def test_tokenizer_json_is_taken_untouched(tmp_path):
    """A Llama folder whose JSON splits text in a way that no Llama class would rebuild."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2, "-": 3}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("-", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>").save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}')
    tokenizer = from_tokenizer_json(tmp_path)
    assert (
        tokenizer("a-a b").input_ids == [2, 3, 0] == from_tokenizer_json(tmp_path / "tokenizer.json")("a-a b").input_ids
    )
    assert tokenizer.bos_token == "<s>"


@pytest.mark.parametrize(
    "options", [{"model_type": "unigram"}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": True}]
)
def test_models_of_another_kind_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="Llama-style BPE"):
        from_sentencepiece(train_sentencepiece(tmp_path, **options))


def test_missing_model_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no sentencepiece model at .*tokenizer\.model"):
        from_sentencepiece(tmp_path / "tokenizer.model")
