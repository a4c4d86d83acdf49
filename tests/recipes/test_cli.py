"""One command over all jobs, and a help text for every setting of every recipe."""

import re
import shutil
import subprocess
import sys

import forked
import pytest
from golden_cases import ROOT

from prismatic.models.llm import list_llms
from recipes.cli import JOBS, main, overview
from recipes.config.evaluate import EvaluateConfig
from recipes.config.finetune import FinetuneConfig
from recipes.config.images import AlignConfig, ClassifyConfig, MimConfig
from recipes.config.parsing import _flags
from recipes.config.plan import PlanConfig
from recipes.config.probe import ProbeConfig
from recipes.config.reproduce import ReproduceConfig

RECIPES = {
    "finetune": FinetuneConfig, "align": AlignConfig, "mim": MimConfig, "classify": ClassifyConfig,
    "probe": ProbeConfig, "evaluate": EvaluateConfig, "plan": PlanConfig, "reproduce": ReproduceConfig,
}  # fmt: skip


def prismatic(*argv, **options):
    return forked.run(["-m", "prismatic", *argv], **options)


def test_the_overview_names_every_job_and_imports_none():
    code = "import sys; from recipes.cli import main; main(['--help'])\nprint({'torch', 'yaml'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{overview()}\nset()\n"
    assert all(re.search(rf"^  {name} +\S", overview(), re.M) for name in JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_every_job_explains_itself(name):
    done = prismatic(name, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_has_a_text(name):
    shown = " ".join(prismatic(name, "--help").stdout.split("\n\n", 1)[1].split())
    groups = {flag.partition(".")[0] for flag in _flags(RECIPES[name]) if "." in flag}
    for flag in {*_flags(RECIPES[name])} - groups:
        said = re.search(rf" --{re.escape(flag)} (?:\[?[\w|\[\], ]+?\]? )?(.*?) \(default: ", shown)
        assert said and len(said[1].strip()) > 3, f"--{flag}"


def test_llms_are_listed():
    lines = prismatic("llms").stdout.splitlines()
    assert {line.split()[0] for line in lines[2:]} == set(list_llms())
    assert any(re.fullmatch(r"vicuna-v15-7b +lmsys/vicuna-7b-v1.5 +vicuna-v1.5", line) for line in lines)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("typed", "offered"), [("fin", ["finetune"]), ("p", ["plan", "probe", "prepare"])])
def test_bash_completes_jobs(typed, offered, tmp_path):
    script = tmp_path / "completion.sh"
    script.write_text(prismatic("completion", "bash").stdout)
    words = f"COMP_WORDS=(prismatic {typed}); COMP_CWORD=1; _shtab_prismatic; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"source {script}; {words}"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == offered, done.stderr


def test_names_that_are_nearly_right(capsys):
    with pytest.raises(SystemExit) as end:
        main(["finetun"])
    assert end.value.code == 2 and capsys.readouterr().err == "error: unknown job 'finetun': did you mean finetune?\n"


def test_mistakes_are_one_line_without_a_launcher():
    done = prismatic("finetune", "--llm", "nothing-of-the-kind", "--max_steps", "1")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")


def test_plugins_before_and_after_a_job(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from vision_backbones import BackboneSpec, register\n"
        "register(BackboneSpec('of-mine', arch='vit_tiny_patch16_224', image_size=224))\n"
    )
    for argv in (["--plugins", "mine", "backbones", "list"], ["backbones", "--plugins", "mine", "list"]):
        done = prismatic(*argv, cwd=tmp_path)
        assert "of-mine" in done.stdout, done.stderr


def test_a_folder_of_the_users_called_eval_is_no_obstacle(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    command = [sys.executable, "-P", "-c", "from recipes.cli import main; main(['tasks'])"]  # as a console script does
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "refcoco" in done.stdout, done.stderr
