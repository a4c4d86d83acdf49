"""What is shipped trained, and its cards."""

import json
import re
import shutil
from pathlib import Path

import pytest
from golden_cases import ROOT

from recipes.reproduce import bundled

CARDS = json.loads(bundled.CARDS.read_text())


@pytest.mark.parametrize("part", bundled.FILES)
def test_what_is_shipped_is_what_its_card_says_was_made(part):
    card = CARDS[part]
    assert card["fingerprint"] == bundled.fingerprint(part)
    assert card["made_from"] == {name: CARDS[name]["fingerprint"] for name in bundled.MADE_FROM[part]}
    assert card["command"] == bundled.COMMANDS[part] and card["measured"] and card["versions"]


def test_the_page_says_what_the_cards_measured():
    page = (ROOT / "docs" / "miniature.md").read_text()
    llm = CARDS["llm"]["measured"]
    for kinds in (list(llm)[:7], list(llm)[7:]):
        rows = [" | ".join(kinds), " | ".join(f"{llm[kind]:.3f}" for kind in kinds)]
        assert "| {} |\n|---|---|---|---|---|---|---|\n| {} |".format(*rows) in page
    vlm = {task.partition("+")[0].partition(":")[0]: score for task, score in CARDS["vlm"]["measured"].items()}
    rows = dict(re.findall(r"^\| ([A-Z][^|(]*?)(?:, \+, g)?(?: \(.*?\))? \| (0\.\d{3}) \|", page, re.M))
    assert {name.lower(): share for name, share in rows.items()} == {
        task: f"{score:.3f}" for task, score in list(vlm.items())[:5]
    }
    newer = re.search(r"Newer benchmarks, 400 scenes each: (.*?)\. ", " ".join(page.split()))[1]
    assert newer.replace(" (pairs)", "").split(", ") == [f"{task} {score:.3f}" for task, score in list(vlm.items())[5:]]
    assert f"in {sum(card['seconds'] for card in CARDS.values()) / 60:.0f} minutes" in page
    assert llm["box"] >= 0.85 and llm["choice"] >= 0.95 and min(llm["count"], llm["tally"]) >= 0.95


@pytest.mark.parametrize(
    "path", sorted(bundled.ASSETS.rglob("*.json")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_shipped_files_name_no_place_on_a_disk(path):
    def texts(value):
        if isinstance(value, dict | list):
            return [text for part in (value.values() if isinstance(value, dict) else value) for text in texts(part)]
        return [value] if isinstance(value, str) else []

    assert not [text for text in texts(json.loads(path.read_text())) if text.startswith("/") and "/" in text[1:]]


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for part in bundled.FILES for path in bundled.files(part)) < 16e6


def test_every_file_of_a_part_counts(tmp_path, monkeypatch):
    for name in bundled.FILES:
        before = bundled.fingerprint(name)
        for number, path in enumerate(bundled.files(name)):
            copies = [Path(shutil.copy(p, tmp_path)) for p in bundled.files(name)]
            monkeypatch.setitem(bundled.FILES, name, copies)
            assert bundled.fingerprint(name) == before
            content = path.read_bytes()
            copies[number].write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
            assert bundled.fingerprint(name) != before, path
            monkeypatch.undo()


def test_parts_are_made_where_they_are_shipped_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "python -c \"import os, pathlib; pathlib.Path('made').write_text(os.getcwd())\""
    for name, value in {"ROOT": tmp_path / "root", "CARDS": tmp_path / "cards.json"}.items():
        monkeypatch.setattr(bundled, name, value)
    (tmp_path / "root").mkdir()
    # Before it is made: what is made is among the files that are committed.
    made = tmp_path / "root" / "made"
    monkeypatch.setattr("eval.fingerprints.made_by", lambda: {"commit": "changed" if made.exists() else "as it was"})
    for changed, value in ((bundled.COMMANDS, command), (bundled.MEASURE, lambda: {"recall": 1.0})):
        monkeypatch.setitem(changed, "vit", value)
    monkeypatch.setitem(bundled.FILES, "vit", [made])
    bundled.main(["--parts", "vit"])
    assert made.read_text() == str(tmp_path / "root")
    card = json.loads((tmp_path / "cards.json").read_text())["vit"]
    assert card["fingerprint"] == bundled.fingerprint("vit") and card["cores"] >= 1 and card["commit"] == "as it was"


@pytest.mark.slow
def test_the_shipped_llm_answers_as_well_as_its_card_says():
    again = bundled.measure_llm(scenes=256)
    for kind, share in CARDS["llm"]["measured"].items():
        assert again[kind] == pytest.approx(share, abs=0.05), kind
