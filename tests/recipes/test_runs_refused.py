"""The page's tab of runs: damaged files, hostile names, and what lies outside its folder."""

import html
import html.parser
import json
import os
import tempfile
from pathlib import Path

import pytest
from run_folders import LOSS, PNG, made, rows

from recipes.web.run_curves import chart
from recipes.web.run_data import Runs, chosen, differences
from recipes.web.run_files import Folder, Unreadable
from recipes.web.run_html import POLICY, escaped, picture, report
from recipes.web.run_metrics import Curves

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "{{constructor}} ${alert(1)}",
    "`x`",
    "a\nb",
    "\u202egnp.exe",
    "'\"&<script>",
)
DEEP = "[" * 3000 + "]" * 3000
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
SENT = (
    "../secret",
    ["../secret"],
    ["/etc"],
    ["mine/../../secret"],
    [None, 1, {"a": 1}, ["mine"]],
    {"mine": 1},
    None,
    7,
)


@pytest.mark.parametrize(
    "files, state, remark",
    [
        ({}, "unknown", "empty folder"),
        ({"config_yaml": ""}, "unknown", "config.yaml is empty"),
        ({"config_yaml": "a: [1"}, "unknown", "config.yaml is damaged"),
        ({"config_yaml": b"\xff\xfe\x00"}, "unknown", "config.yaml is damaged"),
        ({"config_yaml": "- a\n- b\n"}, "unknown", "config.yaml is damaged: no settings"),
        ({"config_yaml": BOMB}, "unknown", "config.yaml is damaged: it refers to itself"),
        ({"config_yaml": "a: &x\n  b: *x\n"}, "unknown", "config.yaml is damaged: it refers to itself"),
        ({"config_yaml": "a: " + DEEP}, "unknown", "config.yaml is damaged"),
        ({"config_yaml": "a: !!python/object/apply:os.system [exit]"}, "unknown", "config.yaml is damaged"),
        ({"config_yaml": "a: " + "[" * 60 + "]" * 60}, "unknown", "config.yaml is damaged: too deep"),
        ({"metrics_jsonl": LOSS + '{"step": 2, "los'}, "unknown", "the last line of metrics.jsonl is cut off"),
        ({"metrics_jsonl": "nonsense\n" + LOSS + "[]\n" + LOSS}, "unknown", "metrics.jsonl has 2 damaged lines"),
        ({"metrics_jsonl": LOSS + b"\xff\xfe\n".decode("latin1")}, "unknown", "metrics.jsonl has 1 damaged line"),
        ({"metrics_jsonl": '{"step": 1e400}\n' + DEEP + "\n"}, "unknown", "metrics.jsonl has 2 damaged lines"),
        ({"metrics_jsonl": LOSS, "summary_json": '{"steps": 1'}, "unknown", "summary.json is damaged"),
        ({"metrics_jsonl": LOSS, "summary_json": "[]"}, "unknown", "summary.json is damaged: no object"),
        ({"results_json": '{"tasks": {"vsr": 3, "x": {"main": [], "metrics": 7}}}'}, "finished", ""),
        ({"results_json": '{"tasks": [], "probes": [1, {"best": 2}], "settings": [1]}'}, "interrupted", ""),
        ({"results_json": DEEP}, "unknown", "results.json is damaged"),
        ({"results_json": ""}, "unknown", "results.json is empty"),
        ({"config_yaml": "backbone: x\nlabels: 3\n", "results_json": "{}"}, "interrupted", ""),
        ({"config_yaml": "llm: 1\nprojector: 2\nepochs: x\n", "summary_json": '{"a": 1}'}, "finished", ""),
    ],
)  # fmt: skip
def test_damaged_files_are_said_in_a_few_words(tmp_path, files, state, remark):
    made(tmp_path / "bad", **files)
    made(tmp_path / "good", metrics_jsonl=LOSS)
    found = rows(tmp_path)
    assert found["bad"]["state"] == state and found["bad"]["remarks"] == remark
    assert found["good"]["loss"] == "0.5"
    runs = Runs(tmp_path)
    for run in runs.all():
        runs.scores(run), runs.pictures(run), runs.reports(run), runs.stamps(run), differences([runs.settings(run)])
        [Curves(runs.files).read(path) for _, path in runs.metrics(run)]


def test_odd_settings_are_shown(tmp_path):
    odd = f"1: 2026-01-01\n2: {{x: 0x{'f' * 5000}}}\nb: !!binary aGk=\nc: [{{2026-01-01: 1}}]\nd: .nan\n"
    made(tmp_path / "a", config_yaml=odd)
    (run,) = Runs(tmp_path).all()
    shown = dict(differences([Runs(tmp_path).settings(run)]))
    assert shown["1"] == '"2026-01-01"' and shown["d"] == "NaN" and shown["2.x"] == "(cannot be shown)"
    assert shown.keys() == {"1", "2.x", "b", "c", "d"}


def test_folders_without_rights_are_said(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        made(root / "closed", metrics_jsonl=LOSS).chmod(0)
        made(root / "half", metrics_jsonl=LOSS).chmod(0o444)
        (made(root / "file", metrics_jsonl=LOSS, summary_json="{}") / "metrics.jsonl").chmod(0)
        uid = os.geteuid()
        if uid == 0:  # may read anything
            os.seteuid(65534)
        try:
            found = rows(root)
        finally:
            os.seteuid(uid)
            (root / "closed").chmod(0o700), (root / "half").chmod(0o700)
    assert found["closed"]["remarks"] == "cannot be read: permission denied"
    assert "metrics.jsonl: permission denied" in found["half"]["remarks"]
    assert found["file"]["remarks"] == "metrics.jsonl: permission denied"


def test_nothing_outside_is_read(tmp_path):
    files = {"metrics_jsonl": LOSS, "report_html": "secret", "samples_png": PNG, "config_yaml": "a: secret"}
    secret = made(tmp_path / "secret", **files, results_json='{"tasks": {"secret": {}}}')
    root = tmp_path / "runs"
    made(root / "mine", metrics_jsonl=LOSS, summary_json='{"x": 1}')
    for name in ("report.html", "samples.png", "config.yaml", "results.json"):
        (root / "mine" / name).symlink_to(secret / name)
    (root / "mine" / "eval").symlink_to(secret)
    (root / "whole").symlink_to(secret)
    (root / "mine" / ".lock").symlink_to(secret / "report.html")
    made(root / "other", summary_json="{}", weights="secret")
    (root / "other" / "samples.png").symlink_to(root / "other" / "weights")  # inside, but not what it is called
    os.mkfifo(root / "other" / "metrics.jsonl")
    (root / "other" / "patches.png").symlink_to("patches.png")
    runs = Runs(root)
    found = {run.name: run for run in runs.all()}
    assert found["whole"].remarks == ("a link to elsewhere, which is not followed",)
    assert found["mine"].remarks == ("config.yaml is a link to elsewhere", "results.json is a link to elsewhere")
    assert found["other"].remarks == ("metrics.jsonl is not a file",)
    for run in found.values():
        assert not runs.reports(run) and not runs.pictures(run) and not runs.settings(run) and not runs.scores(run)
    files = Folder(root)
    for path in (secret / "report.html", root / ".." / "secret" / "report.html", root / "mine" / "samples.png"):
        with pytest.raises(Unreadable, match="is a link to elsewhere"):
            files.content(path)
    with pytest.raises(Unreadable):
        files.content(root / "other" / "weights")
    (root / "inner").symlink_to(root / "mine")  # another name for a run is fine
    assert rows(root)["inner"]["loss"] == "0.5"


@pytest.mark.parametrize("sent", [*SENT, ["mine\0"], [".."], [""]])
def test_what_a_browser_sends_is_only_looked_up(tmp_path, sent):
    made(tmp_path / "secret", report_html="secret", metrics_jsonl=LOSS)
    made(tmp_path / "runs" / "mine", metrics_jsonl=LOSS)
    runs = Runs(tmp_path / "runs").all()
    assert chosen(runs, sent) == [] and [run.name for run in chosen(runs, ["mine", "x", "mine"])] == ["mine"]


def test_hostile_names_are_text(tmp_path):
    for name in HOSTILE:
        made(tmp_path / name, metrics_jsonl=LOSS)
    os.makedirs(os.fsencode(tmp_path) + b"/bad\xff")
    runs = Runs(tmp_path)
    found = runs.all()
    names = [run.name for run in found]
    assert len(set(names)) == len(HOSTILE) + 1 and all(name.isprintable() for name in names)
    json.dumps(names).encode()
    drawn = chart([(run.name, Curves(runs.files).read(run.folder / "metrics.jsonl")) for run in found])
    for text in (drawn, picture(PNG, names[0]), picture(b"", names[1]), report("x", names[2])):
        assert not {"script", "onerror"} & set(elements(text))
    for letter in "{}$`":
        assert letter not in drawn and letter not in "".join(map(escaped, names))


def elements(text):
    """Names of all elements of HTML, and of all their attributes."""
    found = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.extend([tag, *dict(attributes)])

    Parser().feed(text)
    return found


def test_a_report_cannot_act(tmp_path):
    page = '<!doctype html><script>alert(1)</script>"><img src="http://example.org/x.png" onerror=alert(2)>{{x}}'
    shown = report(page, 'a" onload="alert(3)')
    assert elements(shown) == ["iframe", "class", "sandbox", "title", "srcdoc"]
    assert 'sandbox=""' in shown, "no scripts, and no origin of ours"
    inside = html.unescape(shown[shown.index('srcdoc="') + 8 : -len('"></iframe>')])
    assert inside.endswith(page) and inside.index(html.escape(POLICY, quote=False)) < inside.index("<script>")
    assert "default-src 'none'" in POLICY and "script" not in POLICY
