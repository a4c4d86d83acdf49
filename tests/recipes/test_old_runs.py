"""Runs that an earlier version left are read, and end as it ended them: see tests/fixtures/README.md."""

import dataclasses
import json
import re
import runpy
import shutil
import sys

import pytest
from golden_cases import ROOT

from prismatic.checkpoints.old_names import current_name
from prismatic.models import llm, load
from vision_backbones import weights

pytestmark = pytest.mark.usefixtures("quick")
FIXTURES = ROOT / "tests" / "fixtures"
OLD = FIXTURES / "b6e569a"
RECORD = runpy.run_path(str(FIXTURES / "record.py"))
PRESET = ["--projector_learning_rate", "null", "--betas", "[0.9, 0.999]"]  # which the preset sets since then
SINCE = dict.fromkeys(("finetune", "lora"), PRESET)


@pytest.fixture(autouse=True)
def as_they_were_begun(monkeypatch):
    """Commands name their files from the root, and mean the bundled models of then."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(weights, "ASSETS", OLD / "bundled")
    monkeypatch.setitem(load.BUNDLED, "miniature", OLD / "bundled" / "vlm")
    spec = llm.get_llm_spec("miniature")
    monkeypatch.setitem(llm._SPECS, "miniature", dataclasses.replace(spec, hub=str(OLD / "bundled" / "llm")))


def recorded(name):
    """What the earlier version found, with the names that parameters of VLMs have today."""
    found = json.loads((OLD / f"{name}.json").read_text())
    if name in ("finetune", "lora"):
        found["weights"] = {
            file: {current_name(key): norm for key, norm in norms.items()} for file, norms in found["weights"].items()
        }
        assert not any("llm." in key for norms in found["weights"].values() for key in norms)
    return found


def leaves(found, place=""):
    """What is at the ends of nested dicts and lists, by its place, and how long lists are."""
    if isinstance(found, dict):
        return {key: leaf for name, part in found.items() for key, leaf in leaves(part, f"{place}/{name}").items()}
    if isinstance(found, list):
        return {place: len(found)} | leaves(dict(enumerate(found)), place)
    return {place: found}


def differences(now, then):
    """Where what was found then is not found now: numbers to 1e-6, absolute and of the number."""

    def like(leaf, place):
        rough = re.search("grad_norm|probabilities|outputs", place)  # between processors they differ more than losses
        return pytest.approx(leaf, rel=1e-5 if rough else 1e-6, abs=1e-5 if rough else 1e-6)

    now = leaves(now)
    then = {place: like(leaf, place) if isinstance(leaf, float) else leaf for place, leaf in leaves(then).items()}
    return {place: (now.get(place), leaf) for place, leaf in then.items() if now.get(place, "nothing") != leaf}


@pytest.mark.parametrize("name", RECORD["RUNS"])
def test_an_interrupted_run_of_an_earlier_version_ends_as_it_did_there(name, tmp_path):
    run = shutil.copytree(OLD / name, tmp_path / name)
    now = {"outputs": RECORD["outputs"](run), "calls": RECORD["call"](name, tmp_path, SINCE.get(name, []))} | RECORD[
        "outcome"
    ](run)
    assert not differences(now, recorded(name))


def test_another_run_goes_on_from_a_step_checkpoint_of_an_earlier_version(tmp_path):
    step, then = OLD / "lora" / "checkpoints" / "step-00000004", recorded("lora")
    calls = RECORD["call"]("lora", tmp_path, [*SINCE["lora"], "--resume", str(step), "--run_id", "new"])
    now = {"calls": calls, "weights": RECORD["outcome"](tmp_path / "new")["weights"]}
    assert not differences(now, {name: then[name] for name in now})
