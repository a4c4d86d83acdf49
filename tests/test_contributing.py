"""The worked additions of CONTRIBUTING.md, done as a newcomer would: the file as it stands there, then the command."""

import re
import shlex
from pathlib import Path

import forked
import pytest
from golden_cases import ROOT

import prismatic

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
ADDITIONS = re.findall(r"```python\n# (\w+)\.py\n(.*?)```\n```bash\n(.*?)\n```", PAGE, re.S)
FAST = {
    "finetune": "--data.annotations miniature:64 --data.held_out_limit 1 --global_batch_size 8 "
    "--per_device_batch_size 8 --eval_tasks []",
    "align": "--data.train miniature:32 --data.validation miniature:8 --global_batch_size 8",
}


@pytest.mark.parametrize(("name", "code", "command"), ADDITIONS, ids=[name for name, *_ in ADDITIONS])
def test_addition(name, code, command, tmp_path, monkeypatch):
    (tmp_path / f"{name}.py").write_text(code)
    argv = shlex.split(command)
    short = FAST.get(argv[1], "").split()
    workers = ["--data.workers", "0", "--run_id", "added"] if short else []
    done = forked.run(["-m", *argv, *short, *workers], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "my_projector":  # what was trained is loaded, once the projector is known
        with pytest.raises(ValueError, match="unknown projector 'bottleneck'"):
            prismatic.load(tmp_path / "runs" / "added")
        monkeypatch.syspath_prepend(tmp_path)
        __import__(name)
        model, _ = prismatic.load(tmp_path / "runs" / "added")
        assert [tuple(p.shape) for p in model.projector.parameters()][0][0] == 64


def test_every_kind_of_addition_is_worked():
    kinds = re.search(r"## Add a \.\.\.(.*?)\n### ", PAGE, re.S)[1]
    assert len(ADDITIONS) == len(re.findall(r"^\| [^-w]", kinds, re.M)) == 5
    for module, function in re.findall(r"`([a-z_.]+)\.(register\w*)`", kinds):
        assert callable(getattr(__import__(module, fromlist=[function]), function))
    for path in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert Path(ROOT / path).is_file(), path
