"""How the bundled LLM is made: what it reads, is asked and is taught, and the settings of its makers."""

from collections import Counter
from dataclasses import replace

import forked
import numpy as np
import pytest
import torch

from prismatic.miniature import make_llm
from prismatic.miniature.documents import (
    NAMES,
    NUMBERS,
    map_batch,
    name_batch,
    phrases,
    sentence_batch,
    spread,
    train_tokenizer,
)
from prismatic.miniature.language import CELLS, box_text, cell_contents, prompt, questions
from prismatic.miniature.scenes import sample_layout, scenes
from prismatic.miniature.spatial import quadrant

TINY = make_llm.Config(hidden_size=64, layers=2, steps=2, scenes=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TINY.vocab_size, seed=0)


@pytest.fixture(scope="module")
def reader(tokenizer):
    torch.manual_seed(0)
    return make_llm.Reader(make_llm.fresh(TINY, tokenizer), tokenizer)


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        ("make_llm", "--steps 0", "--steps is 0: expected 1 or more"),
        ("make_llm", "--hidden_size 30", "expected a multiple of 32"),
        ("make_llm", "--layers 1", "--layers is 1: expected 2 or more"),
        ("make_vit", "--batch_size 0", "--batch_size is 0: expected 1 or more"),
        ("make_vit", "--steps many", "Couldn't parse 'many' into an int"),
    ],
)
def test_settings_that_nothing_can_be_made_with(module, argv, message):
    ended = forked.run(["-m", f"prismatic.miniature.{module}", *argv.split()])
    assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_llm.main(replace(TINY, out=tmp_path / "file" / "llm", steps=10**9))


def test_questions_after_a_map_see_what_they_would_in_one_text(tokenizer, reader):
    batch = map_batch(tokenizer, np.random.default_rng(3), scenes=3)
    with torch.no_grad():
        shared, _ = reader.hidden(batch)
        words = reader.model.get_input_embeddings()
        for part, states in zip(batch.parts, shared, strict=True):
            seen = 2 * batch.maps[part.scene].sqrt() @ words(reader.looks)
            start = words(reader.bos).expand(len(seen), 1, -1)
            text = torch.cat([start, seen, words(part.input_ids)], 1)
            whole = reader.model.model(inputs_embeds=text, use_cache=False).last_hidden_state
            torch.testing.assert_close(states[-1], whole[:, 1 + CELLS**2 :], atol=1e-4, rtol=1e-4)


def test_what_is_to_be_predicted_are_the_answers(tokenizer):
    for batch in (
        map_batch(tokenizer, np.random.default_rng(4), scenes=4),
        sentence_batch(tokenizer, np.random.default_rng(4), scenes=8),
    ):
        for part, asked in zip(batch.parts, batch.asked, strict=True):
            for ids, labels, q in zip(part.input_ids, part.labels, asked, strict=True):
                said = tokenizer.decode(labels[labels != -100], skip_special_tokens=True).strip()
                assert said == q.answer and labels[labels != -100][-1] == tokenizer.eos_token_id
                text = tokenizer.decode(ids[labels == -100])
                assert prompt(q) in text and text.rstrip("<unk>").endswith("Out:")
                assert ("There is a" in text) == (batch.maps is None)
    assert batch.maps is None and all(q.kind != "box" for asked in batch.asked for q in asked)


def test_answers_read_as_they_will_be_in_a_conversation(tokenizer):
    """Tokens of a prompt and of its answer are those of both in one text, as finetunes and evaluations have them."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        things = sample_layout(rng)
        for q in questions(things, rng):
            start = tokenizer(f"In: {prompt(q)}\nOut:", add_special_tokens=False).input_ids
            whole = tokenizer(f"In: {prompt(q)}\nOut: {q.answer}</s>", add_special_tokens=False).input_ids
            answer = f" {q.answer}</s>" if q.kind == "box" else f"{q.answer}</s>"
            assert start + tokenizer(answer, add_special_tokens=False).input_ids == whole, q
            assert tokenizer.decode(whole) == f"In: {prompt(q)}\nOut: {q.answer}</s>"
    assert cell_contents(things).sum(1).min() >= 1  # colours or background, everywhere


def test_phrases_point_at_the_pixels_of_what_they_name():
    text = "How many circles are to the left of the small red square? A. a cross B. blue object C. object D. circlet"
    found = 0
    for shown in scenes(3, 0, 40, min_objects=3):
        owners, names = shown.instance_map(), phrases(text, shown.things)
        for phrase, fits in {
            "circles": lambda t: t.shape == "circle",
            "small red square": lambda t: (t.size, t.colour, t.shape) == ("small", "red", "square"),
            "cross": lambda t: t.shape == "cross",
            "blue object": lambda t: t.colour == "blue",
        }.items():
            owned = np.isin(owners, [n for n, t in enumerate(shown.things, start=1) if fits(t)])
            told = names.pop(text.index(phrase) + len(phrase), None)
            assert (told is not None) == owned.any()
            if told is not None:
                patches = owned.reshape(CELLS, 8, CELLS, 8).sum((1, 3)).ravel()
                np.testing.assert_allclose(told, patches / owned.sum(), atol=1e-6)
                found += 1
        assert not names  # "object" alone and "circlet" name nothing by its looks
    assert found > 40


@pytest.mark.parametrize("make", [map_batch, name_batch])
def test_phrases_end_where_their_last_word_does(tokenizer, make):
    batch = make(tokenizer, np.random.default_rng(8), scenes=6)
    for part in batch.parts:
        for (row, token), shown in zip(part.named, part.shown, strict=True):
            word = tokenizer.decode(part.input_ids[row, token])
            assert word.strip().removesuffix("s") in ("circle", "square", "triangle", "cros", "crosse", "object", "")
            assert shown.sum() == pytest.approx(1, abs=1e-5) and part.labels[row, token] == -100
        if make is name_batch:
            assert len(part.named) == NAMES * len(part.input_ids) and not part.about.any()


def test_of_the_options_the_answer_is_the_right_one(tokenizer):
    batch = map_batch(tokenizer, np.random.default_rng(9), scenes=12)
    seen = set()
    for part, asked in zip(batch.parts, batch.asked, strict=True):
        for row, q in enumerate(asked):
            mine = part.offered[:, 0] == row
            if q.kind not in ("choice", "option"):
                assert not mine.any()
                continue
            lines = q.text.split("\n")[1:-1]
            ends = [
                tokenizer.decode(part.input_ids[row, : token + 1]).split("\n")[-1] for token in part.offered[mine, 1]
            ]
            assert ends == lines and part.right[mine].tolist() == [line[0] == q.answer for line in lines]
            seen.add(q.answer)
    assert seen == set("ABCD")


def test_questions_are_about_the_pixels_of_what_decides_the_answer(tokenizer):
    rng, kinds = np.random.default_rng(10), Counter()
    for shown in scenes(4, 0, 60):
        owners = shown.instance_map()
        for q in questions(shown.things, rng):
            owned = np.isin(owners, [shown.things.index(t) + 1 for t in q.about])
            patches = owned.reshape(CELLS, 8, CELLS, 8).sum((1, 3)).ravel()
            np.testing.assert_allclose(spread(q.about), patches / max(owned.sum(), 1), atol=1e-6)
            if q.kind in ("count", "tally"):
                assert len(q.about) == (int(q.answer) if q.kind == "count" else "ABCDEFGHIJKLMNOP".index(q.answer))
            elif q.kind in ("box", "color", "shape", "size", "where", "which", "choice"):
                (thing,) = q.about
                words = {*thing.name.split(), thing.name, thing.size, quadrant(thing), box_text(thing)}
                line = next((line for line in q.text.split("\n") if line.startswith(f"{q.answer}. ")), q.answer)
                assert line.removeprefix(f"{q.answer}. ") in words, q
            kinds[q.kind] += bool(q.about)
    assert min(kinds[kind] for kind in ("count", "tally", "choice", "box", "option")) > 5


def test_losses_are_of_what_states_do_not_tell(tokenizer, reader):
    """Term by term and position by position."""
    config = replace(TINY, distance_weight=0.3, place_weight=0.7, point_weight=1.3, option_weight=1.7)
    batch = map_batch(tokenizer, np.random.default_rng(11), scenes=4)
    terms = {name: [] for name in ("answer", "distance", "place", "asked", "named", "option")}
    with torch.no_grad():
        hidden, maps = reader.hidden(batch)
        for part, states in zip(batch.parts, hidden, strict=True):
            for row, labels in enumerate(part.labels):
                wanted = (labels != -100).nonzero().flatten().tolist()
                for place in wanted:
                    shares = reader.model.lm_head(states[-1][row, place - 1]).softmax(-1)
                    terms["answer"].append(-shares[labels[place]].log())
                    if (word := tokenizer.convert_ids_to_tokens(labels[place].item())) in NUMBERS:
                        far = [abs(float(other) - float(word)) * 48 for other in NUMBERS]
                        ids = tokenizer.convert_tokens_to_ids(list(NUMBERS))
                        terms["distance"].append(sum(f * shares[i] for f, i in zip(far, ids, strict=True)))
                if part.about[row].any():
                    told = reader.point(states[-2][row, wanted[0] - 1]).softmax(-1)
                    terms["asked"].append(-(part.about[row] * told.log()).sum())
            for (row, place), shown in zip(part.named, part.shown, strict=True):
                terms["named"].append(-(shown * reader.name(states[2][row, place]).softmax(-1).log()).sum())
            for (row, place), right in zip(part.offered, part.right, strict=True):
                chance = reader.fits(states[-2][row, place]).sigmoid()
                terms["option"].append(-(chance if right else 1 - chance).log())
        for scene in maps[1]:
            for cell in range(CELLS**2):
                row, column = reader.place(scene[1 + cell])
                terms["place"] += [(row - (cell // CELLS - 2.5)) ** 2, (column - (cell % CELLS - 2.5)) ** 2]
        mean = {name: sum(values) / len(values) for name, values in terms.items()}
        expected = mean["answer"] + 0.3 * mean["distance"] + 0.7 * mean["place"] + 1.7 * mean["option"]
        expected += 1.3 * (mean["asked"] + mean["named"])
        assert reader.loss(batch, config).item() == pytest.approx(expected.item(), rel=1e-5)


def test_near_numbers_begin_alike(reader):
    numbers = reader.model.get_input_embeddings().weight[reader.numbers]
    alike = torch.nn.functional.cosine_similarity(numbers[50], numbers, dim=-1).detach()
    assert NUMBERS[50] == "0.5" and alike[50] == pytest.approx(1)
    assert alike[51] > alike[54] > alike[60] > alike[80].abs()


def test_boxes_are_written_number_after_number(tokenizer, reader):
    """`write` gives what a loop over single tokens does."""
    batch = map_batch(tokenizer, np.random.default_rng(6), scenes=2)
    written = reader.write(batch)
    for part, asked, said in zip(batch.parts, batch.asked, written, strict=True):
        for row, q in enumerate(asked):
            if q.kind != "box":
                continue
            ids, wanted = part.input_ids[row].clone(), (part.labels[row] != -100).nonzero().flatten()
            for place in wanted:
                one = replace(part, input_ids=ids[None], labels=part.labels[row][None], scene=part.scene[row][None])
                (hidden,), _ = reader.hidden(make_llm.Batch(batch.maps, [one], []))
                likeliest = reader.model.lm_head(hidden[-1][0, place - 1]).argmax()
                assert likeliest == said[row, place]
                if reader.number_of[ids[place]] >= 0:
                    ids[place] = likeliest


@pytest.mark.slow
def test_the_llm_is_made_twice_alike(tmp_path):
    config = replace(TINY, naming_steps=1, steps=make_llm.SENTENCES + 1)  # rows of names, maps and sentences
    for name in ("one", "two"):
        make_llm.main(replace(config, out=tmp_path / name))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
