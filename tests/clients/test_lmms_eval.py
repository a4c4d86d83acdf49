"""lmms-eval evaluates a model through our plugin, and finds what our own engine's answers score."""

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from golden_cases import ROOT
from PIL import Image

from eval.engine import Question
from eval.generate_engine import load_engine
from eval.task import Generate
from prismatic.miniature.language import prompt, questions
from prismatic.miniature.scenes import scene

PLACE = ROOT / ".venv" / "lmms-eval"
there = find_spec("lmms_eval") or (PLACE / "lmms_eval").is_dir()
needs_lmms_eval = pytest.mark.skipif(not there, reason="lmms-eval is not installed")
PAGE = (ROOT / "docs" / "lmms-eval.md").read_text()


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """A folder with the metadata that an installation writes."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_entry_point_names_what_is_there(metadata):
    read = configparser.ConfigParser()
    read.read(next(metadata.glob("*/entry_points.txt")))
    module, _, function = read["lmms_eval.models"]["prismatic"].partition(":")
    source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    defined = {node.name: node for node in source.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert ".Prismatic" in ast.unparse(defined[function])
    assert {"generate_until", "loglikelihood"} <= {getattr(node, "name", "") for node in defined["Prismatic"].body}


def asked_about(count):
    """Pictures, and questions with answers, each beside the number of its picture; those of a picture lie apart."""
    drawn = [scene(77, number) for number in range(count)]
    rows = [(n, q) for n, one in enumerate(drawn) for q in questions(one.things, np.random.default_rng(n))]
    short = [(n, prompt(q), q.answer) for n, q in rows if q.kind in ("exists", "count", "color", "shape")]
    order = np.random.default_rng(0).permutation(len(short))
    return [Image.fromarray(one.image) for one in drawn], [short[place] for place in order]


def one_by_one(pictures, asked, new):
    """Answers of our model through `generate`, a question at a time."""
    engine = load_engine("miniature", dtype=torch.float32, device="cpu", batch_size=1, strict=True)
    return [a.text for a in engine.answer(pictures, [Question(n, text, Generate(new)) for n, text, _ in asked])]


@pytest.mark.slow
@needs_lmms_eval
@pytest.mark.parametrize(("processes", "folder"), [(1, False), (2, False), (1, True)])
def test_the_page_evaluates_a_task(processes, folder, metadata, tmp_path, monkeypatch):
    """Its data, its task and its command; a task named by its folder makes requests of another form."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], names)
    (tmp_path / "my-tasks" / "scenes.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    options = re.search(r"^lmms-eval (.*--include_path my-tasks .*)  # network$", PAGE, re.M)[1].split()
    if folder:
        options[options.index("--tasks") + 1] = "my-tasks"
    settings = ROOT / "recipes" / "configs" / "accelerate" / "cpu-2.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(settings)] if processes == 2 else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (metadata, ROOT, PLACE))),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, *launch, "-m", "lmms_eval", "eval", *options, "--device", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"Running on rank {processes - 1} " in done.stdout and f"Running on rank {processes} " not in done.stdout
    results = list((tmp_path / "results").rglob("*_results.json"))
    assert results, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(results[0].read_text())["results"]["scenes"]["exact_match,none"]
    said = [json.loads(line) for line in next((tmp_path / "results").rglob("*_samples_scenes.jsonl")).open()]
    asked = [(number, row["question"], row["answer"]) for number, row in enumerate(names["rows"])]
    expected = one_by_one([row["image"] for row in names["rows"]], asked, 8)
    assert {row["doc_id"]: row["filtered_resps"] for row in said} == dict(enumerate(expected))
    right = [text.lower() == answer.lower() for text, (*_, answer) in zip(expected, asked, strict=True)]
    assert 0.5 < np.mean(right) < 1
    assert found == pytest.approx(np.mean(right))


@pytest.fixture
def plugin(monkeypatch, any_precision):
    monkeypatch.setattr(sys, "path", [*sys.path, str(PLACE)])
    import eval.lmms_eval_plugin as plugin

    return plugin


@pytest.fixture
def model(plugin):
    return plugin.Prismatic("miniature", batch_size="64", device="cpu", dtype="float32")


def requests(model, documents, **options):
    """A request for each document: pictures and a text, or messages."""
    from lmms_eval.api.instance import Instance

    def messages(document):
        pictures, text = document
        parts = [{"type": "image", "url": picture} for picture in pictures] + [{"type": "text", "text": text}]
        return text if isinstance(text, list) else [{"role": "user", "content": parts}]

    model.task_dict["drawn"] = {"test": documents}
    options = {"max_new_tokens": 8} | options
    return [
        Instance(
            "generate_until",
            arguments=("", messages, options, number, "drawn", "test"),
            idx=0,
            metadata={"task": "drawn", "doc_id": number, "repeats": 1},
        )
        for number in range(len(documents))
    ]


@pytest.mark.slow
@needs_lmms_eval
def test_each_image_is_encoded_once(model, monkeypatch):
    pictures, asked = asked_about(6)
    encoded, prefix = [], model.engine.prefix
    monkeypatch.setattr(model.engine, "prefix", lambda given: encoded.append(len(given)) or prefix(given))
    copies = [([pictures[n].copy()], text) for n, text, _ in asked]
    assert model.generate_until(requests(model, copies)) == one_by_one(pictures, asked, 8)
    assert encoded == [6]


@pytest.mark.slow
@needs_lmms_eval
def test_answers_end_where_they_are_to(model):
    pictures, _ = asked_about(1)
    whole, *_ = model.generate_until(requests(model, [(pictures, "Describe the image.")], max_new_tokens=40))
    assert len(whole) >= 6
    later, earlier = whole[-3:], whole[-4:-1]  # they overlap: what is cut at the one no longer holds the other
    found = model.generate_until(
        requests(model, [(pictures, "Describe the image.")], max_new_tokens=40, until=[later, "", earlier])
    )
    assert found == [min((whole.partition(stop)[0] for stop in (later, earlier)), key=len)] != [whole]
    few, *_ = model.generate_until(requests(model, [(pictures, "Describe the image.")], max_new_tokens=1))
    assert whole.startswith(few) and len(few) < len(whole)
    far, *_ = model.generate_until(requests(model, [(pictures, "Describe the image.")], max_new_tokens=49_152))
    assert far.startswith(whole), "as many tokens as the context holds"


@pytest.mark.slow
@needs_lmms_eval
def test_several_images_none_and_earlier_turns(model):
    pictures, _ = asked_about(2)
    picture, texts = {"type": "image", "url": pictures[0]}, ("Be brief.", "What is there?", "A cross.", "What color?")
    turns = [
        {"role": role, "content": [picture] * (number == 1) + [{"type": "text", "text": text}]}
        for number, (role, text) in enumerate(zip(("system", "user", "assistant", "user"), texts, strict=True))
    ]
    documents = [(pictures, "What is there?"), ([], "What is a cross?"), ([], turns), (pictures[:1], "What is there?")]
    found = model.generate_until(requests(model, documents))
    net, processor = model.engine.model, model.engine.processor
    said = [{"role": turn["role"], "content": turn["content"][-1]["text"]} for turn in turns]
    asked = [
        ("What is there?", pictures),
        ("What is a cross?", []),
        (said, pictures[0]),
        ("What is there?", pictures[0]),
    ]
    for (question, images), answer in zip(asked, found, strict=True):
        inputs = processor.ask([question], [images])
        ids = net.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.slow
@needs_lmms_eval
def test_what_is_not_supported_is_said(model, plugin):
    pictures, _ = asked_about(1)
    one = (pictures, "What is there?")
    for options in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}, {"repetition_penalty": 1.2}):
        with pytest.raises(ValueError, match="task drawn asks for sampling, beams .*decoded greedily"):
            model.generate_until(requests(model, [one], **options))
    assert model.generate_until(requests(model, [one], do_sample=False, temperature=0.7, top_p=1.0, num_beams=1))
    video = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
    with pytest.raises(ValueError, match="task drawn, document 1: message 0 has the part .*'video'"):
        model.generate_until(requests(model, [one, ([], video)]))
    long = (pictures, "word " * 2000)
    with pytest.raises(ValueError, match="none of the 1 requests could be answered: .*context has 1024"):
        model.generate_until(requests(model, [long]))
    found = model.generate_until(requests(model, [long, one]))
    assert found[0] == "" and found[1]
    for method, match in (
        (model.loglikelihood, "log probability"),
        (model.generate_until_multi_round, "several rounds"),
    ):
        with pytest.raises(NotImplementedError, match=match):
            method([])
    for settings, match in (
        ({}, "no model"),
        ({"pretrained": "miniature", "dtype": "float31"}, "did you mean .*float32"),
        ({"pretrained": "miniature", "batch_size": "all"}, "batch_size is 'all': expected a number"),
        ({"pretrained": "miniture"}, "no model called 'miniture'"),
    ):
        with pytest.raises(ValueError, match=match):
            plugin.Prismatic(**settings)
