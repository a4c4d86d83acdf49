"""`prismatic data`: what is listed, where a command writes, and mistakes in one line."""

import re

import forked
import pytest

from recipes.data import main, parse
from recipes.training_data.known import mark_ready, read_table

NAMES = [*read_table()["data_sets"]]


def run(*argv, cwd):
    return forked.run(["-m", "prismatic", "data", *argv], cwd=cwd)


def test_known_data_sets_are_listed_with_what_is_on_disk(tmp_path, capsys):
    captions = tmp_path / "download/llava-laion-cc-sbu-558k"
    (captions / "00453").mkdir(parents=True)
    (captions / "chat.json").write_text("[]")
    mark_ready("llava-pretrain-558k", 558128, tmp_path)
    (tmp_path / "download/llava-v1.5-instruct/lrv/lrv-vg").mkdir(parents=True)
    main(parse(["list", "--data_root", str(tmp_path)]))
    said = capsys.readouterr().out
    states = dict(re.findall(r"^(l[\w.-]+) .* (nothing|partly|ready)$", said, re.M))
    assert states == dict.fromkeys(NAMES, "nothing") | {
        "llava-pretrain-558k": "ready", "llava-lrv": "partly", "lrv-instruct": "partly"
    }  # fmt: skip
    assert re.search(r"^llava-v1.5-instruct +665,298 +73.3 GB ", said, re.M)
    assert re.search(r"^lrv-instruct +1231k +74.5 GB\+ ", said, re.M)
    assert said.count("licence: ") == len(NAMES)
    (captions / "chat.json").unlink()
    main(parse(["list", "--data_root", str(tmp_path)]))
    assert re.search(r"^llava-pretrain-558k .* partly$", capsys.readouterr().out, re.M)


def test_a_page_is_written_where_the_command_says(tmp_path):
    done = run("look", "miniature:20", "--n", "3", "--out", "pages/drawn.html", cwd=tmp_path)
    assert done.returncode == 0 and "pages/drawn.html: 3 of 20 rows, statistics of 20\n" in done.stdout, done.stderr
    assert (tmp_path / "pages/drawn.html").read_text().count('class="row"') == 3


def test_verify_is_the_same_as_the_job_of_that_name(tmp_path):
    (tmp_path / "rows.json").write_text('[{"id": 1, "conversations": [{"from": "human", "value": "a"}]}]')
    ours, theirs = run("verify", "rows.json", ".", cwd=tmp_path), forked.run(
        ["-m", "prismatic", "verify", "rows.json", "."], cwd=tmp_path
    )  # fmt: skip
    assert "1 problems" in ours.stdout and (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.returncode == 1


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (
            ["prepare", "llava-v1.5-instuct"],
            1,
            "unknown data set 'llava-v1.5-instuct': did you mean llava-v1.5-instruct",
        ),
        (["look", "nowhere.json"], 1, "error: no annotation file nowhere.json"),
        (["look", "miniature:20", "--model", "miniatur"], 1, "no model called 'miniatur'"),
        (["look", "miniature:20", "--n", "0"], 2, "argument --n: '0' is no number of at least 1"),
        (["look", "miniature:20", "--max_length", "-3"], 2, "argument --max_length: '-3' is no number"),
        (["lok"], 2, "invalid choice: 'lok'"),
    ],
)
def test_mistakes_are_said(argv, status, message, tmp_path):
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == status and message in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [[], ["list"], ["prepare"], ["look"], ["verify"]])
def test_every_command_explains_itself(command, tmp_path):
    done = run(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage:") and len(done.stdout.split()) > 20
