import pytest
from golden_cases import golden_dir, load_json, requires_golden
from small_tokenizers import CHATML, byte_level, mistral_model_file, requires_mistral, train_sentencepiece

from prismatic.text.conversations import (
    encode_prompt,
    insert_image_tokens,
    option_token_ids,
    tokenize_conversation,
    word_count,
)
from prismatic.text.prompts import chat_template, prompt_styles, to_messages
from prismatic.text.rendering import render_prompt, render_turns
from prismatic.text.tokenizers import from_sentencepiece
from prismatic.text.words import encode_text

FOLDER = "B_prismatic/B3_tokenisation"
CONVERSATION = [
    {"from": "human", "value": "<image>\nWhat color is the circle?"},
    {"from": "gpt", "value": "Blue. Not <image> red."},
    {"from": "human", "value": "Is it 12 cats?"},
    {"from": "gpt", "value": ""},
    {"from": "human", "value": "How many?"},
    {"from": "gpt", "value": "你好 3 dogs"},
]


def prepared(tokenizer, style=None):
    """What `load_tokenizer` adds to a tokenizer."""
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    if style is not None:
        tokenizer.chat_template = chat_template(style)
    return tokenizer


def golden_tokenizer(name):
    if name == "tiny":
        return prepared(from_sentencepiece(golden_dir() / FOLDER / "tiny_tokenizer.model"))
    assert name == "mistral_v1"
    return prepared(from_sentencepiece(mistral_model_file()))


@pytest.fixture(params=["llama", "chatml", "phi-2"])
def tokenizer(request, tmp_path):
    if request.param == "llama":
        return prepared(from_sentencepiece(train_sentencepiece(tmp_path)), "vicuna-v1.5")
    if request.param == "phi-2":
        return prepared(byte_level("<|endoftext|>", "<|endoftext|>", trim_offsets=True), "phi-2")
    chatml = prepared(byte_level("<|im_start|>", "<|im_end|>"))
    chatml.chat_template = CHATML
    return chatml


def check_finetune_rows(name):
    tokenizer = golden_tokenizer(name)
    examples = {row["id"]: row["conversations"] for row in load_json(f"{FOLDER}/examples.json")}
    cases = [case for case in load_json(f"{FOLDER}/finetune_tokens.json") if case["tokenizer"] == name]
    assert cases
    for case in cases:
        tokenizer.chat_template = chat_template(case["builder"])
        got = tokenize_conversation(examples[case["example"]], tokenizer, case["model_max_length"], as_reference=True)
        assert got == (case["input_ids"], case["labels"]), (case["builder"], case["example"])


@requires_golden
def test_finetune_rows_match_the_reference():
    check_finetune_rows("tiny")


@requires_golden
@requires_mistral
def test_finetune_rows_of_a_real_tokenizer_match_the_reference():
    check_finetune_rows("mistral_v1")


@requires_golden
@requires_mistral
def test_align_rows_and_options_and_prompts_match_the_reference():
    tokenizer = golden_tokenizer("mistral_v1")
    examples = {row["id"]: row["conversations"] for row in load_json(f"{FOLDER}/examples.json")}
    for case in load_json(f"{FOLDER}/align_and_lengths.json")["align_tokens"]:
        got = tokenize_conversation(examples[case["example"]], tokenizer, 2048, stage="align", as_reference=True)
        assert got == (case["input_ids"], case["labels"])
    options = load_json(f"{FOLDER}/string2idx_mistral_v1.json")
    for style in sorted(set(prompt_styles()) - {"phi-2"}):
        tokenizer.chat_template = chat_template(style)
        assert option_token_ids(tokenizer, list(options)) == list(options.values())
    for case in load_json(f"{FOLDER}/inference_prompt_tokens_mistral_v1.json"):
        assert encode_text(case["prompt"], tokenizer)[0] == case["input_ids"]


@requires_golden
def test_word_counts_match_the_reference():
    rows = load_json(f"{FOLDER}/examples.json")
    lengths = load_json(f"{FOLDER}/align_and_lengths.json")
    counts = [word_count(row["conversations"]) for row in rows]
    assert counts == [length for _, length in lengths["finetune_modality_lengths"]]
    examples = {row["id"]: row["conversations"] for row in rows}
    patches = 100
    counts = [patches + word_count(examples[name], stage="align") for name in lengths["align_examples"]]
    assert counts == [length for _, length in lengths["align_modality_lengths_n_image_patches_100"]]


def test_ids_are_the_whole_texts(tokenizer):
    messages = to_messages(CONVERSATION)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    input_ids, labels = tokenize_conversation(CONVERSATION, tokenizer, 2048)
    assert input_ids == encode_text(text, tokenizer)[0]
    assert tokenizer.convert_tokens_to_ids("<image>") not in input_ids
    assert all(label in (-100, token) for label, token in zip(labels, input_ids, strict=True))


def test_what_is_supervised_is_what_must_be_generated(tokenizer):
    """Runs of labels spell the answers, each up to its end token and no further."""
    conversation = [turn for turn in CONVERSATION if turn["value"]][:2] + CONVERSATION[4:]
    _, labels = tokenize_conversation(conversation, tokenizer, 2048)
    runs, run = [], []
    for label in [*labels, -100]:
        if label != -100:
            run.append(label)
        elif run:
            runs.append(tokenizer.decode(run).strip())
            run = []
    answers = [turn.strip() for turn in render_turns(conversation, tokenizer)[1::2]]
    assert runs == answers and all(answer.endswith(tokenizer.eos_token) for answer in answers)


def test_prompt_is_the_beginning_of_the_training_row(tokenizer):
    for end in (1, 3, 5):
        prompt = encode_text(render_prompt(CONVERSATION[:end], tokenizer), tokenizer)[0]
        input_ids, labels = tokenize_conversation(CONVERSATION, tokenizer, 2048)
        if CONVERSATION[end]["value"]:
            assert input_ids[: len(prompt)] == prompt
            assert labels[len(prompt) - 1] == -100 and labels[len(prompt)] == input_ids[len(prompt)]


def test_question_without_answer_is_not_supervised(tokenizer):
    input_ids, labels = tokenize_conversation(CONVERSATION[:1], tokenizer, 2048)
    assert input_ids == encode_text(render_prompt(CONVERSATION[:1], tokenizer), tokenizer)[0]
    assert set(labels) == {-100}


def test_long_conversations_are_cut(tokenizer):
    whole = tokenize_conversation(CONVERSATION, tokenizer, 2048)
    assert tokenize_conversation(CONVERSATION, tokenizer, 20) == (whole[0][:20], whole[1][:20])


def test_align_supervises_the_caption_alone(tokenizer):
    input_ids, labels = tokenize_conversation(CONVERSATION[:2], tokenizer, 2048, stage="align")
    supervised = [label for label in labels if label != -100]
    assert tokenizer.decode(supervised).strip() == "Blue. Not  red." + tokenizer.eos_token
    assert labels == ([-100] if len(labels) > len(supervised) else []) + supervised
    assert input_ids[-len(supervised) :] == supervised


def test_a_template_that_writes_bos_does_not_double_it(tmp_path):
    tokenizer = from_sentencepiece(train_sentencepiece(tmp_path))
    tokenizer.chat_template = "{{ bos_token }}" + chat_template("pure")
    with_bos = tokenize_conversation(CONVERSATION, tokenizer, 2048)
    tokenizer.chat_template = chat_template("pure")
    assert with_bos[0].count(tokenizer.bos_token_id) == 1
    assert tokenize_conversation(CONVERSATION, tokenizer, 2048)[0].count(tokenizer.bos_token_id) == 1


def test_image_tokens_follow_bos():
    ids, labels = [1, 7, 8], [-100, -100, 8]
    assert insert_image_tokens(ids, labels, 9, 2, bos_token_id=1) == ([1, 9, 9, 7, 8], [-100] * 4 + [8])
    assert insert_image_tokens(ids, labels, 9, 2, bos_token_id=None) == ([9, 9, 1, 7, 8], [-100] * 4 + [8])
    assert insert_image_tokens(ids, labels, 9, 2, bos_token_id=5)[0] == [9, 9, 1, 7, 8]
    assert insert_image_tokens(ids, labels, 9, 2, bos_token_id=0)[0] == [9, 9, 1, 7, 8]
    assert insert_image_tokens([], [], 9, 2, bos_token_id=1) == ([9, 9], [-100, -100])


def test_options_of_several_tokens_continue_the_prompt(tokenizer):
    options = ["yes", " no", "s", "twelve red circles", "你好"]
    prompt = encode_text(render_prompt([{"role": "user", "content": "Or?"}], tokenizer), tokenizer)[0]
    for option, ids in zip(options, option_token_ids(tokenizer, options), strict=True):
        conversation = [{"role": "user", "content": "Or?"}, {"role": "assistant", "content": option}]
        trained, _ = tokenize_conversation(conversation, tokenizer, 2048)
        assert trained[len(prompt) : len(prompt) + len(ids)] == ids
        assert trained[len(prompt) + len(ids)] in (tokenizer.eos_token_id, *tokenizer("\n").input_ids[-1:])
    with pytest.raises(ValueError, match="expected options that are words"):
        option_token_ids(tokenizer, ["yes", " "])


@pytest.mark.parametrize(
    ("conversation", "options", "message"),
    [
        ([], {"row_id": "a7"}, "row 'a7': expected a list of at least one turn"),
        (CONVERSATION[1:2], {"row_id": 3}, "row 3: turn 0 is the assistant's"),
        ([{"from": "human", "value": None}], {}, "^turn 0"),
        (CONVERSATION[:1], {"stage": "align", "row_id": 4}, "row 4: the conversation holds no answer"),
        (CONVERSATION, {"stage": "lora"}, "unknown stage 'lora'"),
    ],
)
def test_bad_rows_are_named(tokenizer, conversation, options, message):
    with pytest.raises(ValueError, match=message):
        tokenize_conversation(conversation, tokenizer, 2048, **options)


CONTROL = ["the tag {} ends a line", "{}", "{}{} twice", "a{}b", " {} ", "{}\n{}"]


@pytest.mark.parametrize("text", CONTROL)
def test_words_that_look_like_control_tokens_are_words(tokenizer, text):
    """In a question, an answer and a caption: the text can be read back, and only the template's tokens are control."""
    control = set(tokenizer.all_special_ids)

    def read(ids):
        return [id for id in ids if id in control], "".join(tokenizer.decode(ids, skip_special_tokens=True).split())

    def encoded(question, answer, **options):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return tokenize_conversation(turns, tokenizer, 512, **options)

    usual = read(encoded("Is it?", "yes")[0])[0]
    for mark in (token for token in tokenizer.all_special_tokens if token != "<image>"):  # which is taken out
        said = text.replace("{}", mark).strip()
        squeezed = "".join(said.split())
        ids, labels = encoded("Is it?", said)
        marks, words = read(ids)
        assert marks == usual and words.endswith(squeezed), mark
        prompt = encode_prompt("Is it?", tokenizer)
        assert ids[: len(prompt)] == prompt
        assert "".join(tokenizer.decode([label for label in labels if label >= 0][:-1]).split()).endswith(squeezed)
        ids, labels = encoded(said, "yes")
        prompt = encode_prompt(said, tokenizer)
        assert read(ids)[0] == usual and squeezed in read(ids)[1] and ids[: len(prompt)] == prompt
        assert len([label for label in labels if label >= 0]) == len(
            [label for label in encoded("Is it?", "yes")[1] if label >= 0]
        )
        marks, words = read(encoded("Is it?", said, stage="align")[0])
        assert words == squeezed and marks == read(encoded("Is it?", "yes", stage="align")[0])[0]
        assert len(read(encoded(said, "yes", as_reference=True)[0])[0]) > len(usual)


def test_a_template_that_rewrites_words_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    question = f"is {tokenizer.eos_token} it"
    with pytest.raises(ValueError, match="row 7: the chat template does not write the content of"):
        tokenize_conversation([{"role": "user", "content": question}], tokenizer, 512, row_id=7)


def test_a_blank_is_put_in_front_of_the_text_alone():
    """Where the pre-tokenizer puts one in front of the whole text, pieces after control tokens get none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    inner.train_from_iterator(["in out <s> </s> it is said to be . 0"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    text = "it is</s>said to </s> be</s>in"
    mark = text.index("</s>", 12)
    ids, spans = encode_text(text, tokenizer, [(mark, mark + 4)])
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(pieces) == "▁it▁is</s>said▁to▁</s>▁be</s>in"
    assert (
        ids.count(tokenizer.eos_token_id) == 2 and [text[a:b] for a, b in spans if text[a:b] == "</s>"] == ["</s>"] * 2
    )
