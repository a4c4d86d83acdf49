"""One command over all jobs, and a help text for every setting of every recipe."""

import re
import shutil
import subprocess
import sys

import forked
import pytest
from golden_cases import ROOT

from prismatic.models.llm import list_llms
from prismatic.models.projectors import PROJECTORS
from recipes.cli import JOBS, main, overview
from recipes.config.app import AppConfig
from recipes.config.chat import ChatConfig
from recipes.config.evaluate import EvaluateConfig
from recipes.config.finetune import FinetuneConfig, parse_finetune
from recipes.config.images import AlignConfig, ClassifyConfig, MimConfig
from recipes.config.parsing import _flags
from recipes.config.plan import PlanConfig
from recipes.config.probe import ProbeConfig
from recipes.config.reproduce import ReproduceConfig, parse_reproduce
from recipes.config.serve import ServeConfig
from vision_backbones.maskembed.loss import LOSSES

RECIPES = {
    "finetune": FinetuneConfig, "align": AlignConfig, "mim": MimConfig, "classify": ClassifyConfig,
    "probe": ProbeConfig, "evaluate": EvaluateConfig, "plan": PlanConfig, "reproduce": ReproduceConfig,
    "serve": ServeConfig, "chat": ChatConfig, "app": AppConfig,
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
    shown = prismatic(name, "--help").stdout.split("\n\n", 1)[1]
    texts = {  # each stands between its own flag and the next
        found[1]: " ".join(found[2].split()).partition("(default: ")[0]
        for found in re.finditer(r"^ +--([\w.]+)(.*?)(?=^ +--|\Z)", shown, re.M | re.S)
    }
    groups = {flag.partition(".")[0] for flag in _flags(RECIPES[name]) if "." in flag}
    for flag in {*_flags(RECIPES[name])} - groups:
        text = re.sub(r"^(\[?\w+(\[[^ ]*\])?\]?|\{[^}]*\}) ?", "", texts[flag])  # what it takes
        assert len(text.split()) > 1 or len(text) > 6, f"--{flag}: {texts[flag]!r}"


def test_llms_are_listed():
    lines = prismatic("llms").stdout.splitlines()
    assert {line.split()[0] for line in lines[2:]} == set(list_llms())
    assert any(re.fullmatch(r"vicuna-v15-7b +lmsys/vicuna-7b-v1.5 +vicuna-v1.5", line) for line in lines)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("typed", "offered"), [("fin", ["finetune"]), ("pr", ["probe", "prepare", "projectors"])])
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
    (tmp_path / "other.py").write_text("import mine")
    (tmp_path / "eval").mkdir()  # plugins are searched for in this folder, our packages are not
    (tmp_path / "eval" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    for argv in (
        ["--plugins", "mine", "backbones", "list"],
        ["backbones", "--plugins", "mine", "list"],
        ["--plugins=other", "backbones", "list", "--plugins", "mine,other"],
    ):
        done = prismatic(*argv, cwd=tmp_path)
        assert "of-mine" in done.stdout, done.stderr


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if not job.records_plugins])
def test_jobs_without_settings_import_plugins(job, tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('was imported')")
    done = prismatic(job, "--plugins", "mine", cwd=tmp_path)
    assert done.returncode == 1 and "was imported" in done.stderr


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if job.records_plugins])
def test_jobs_with_settings_record_plugins(job, monkeypatch):
    """All of them, wherever they stand: a run that resumes imports them again."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("runpy.run_module", lambda *args, **kwargs: None)
    main(["--plugins", "a", job, "--seed", "1", "--plugins=b,c"])
    assert sys.argv == [f"prismatic {job}", "--seed", "1", "--plugins", "a,b,c"]
    assert parse_finetune(["--plugins", "a", "--seed", "1", "--plugins=b,c"]).plugins == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plugins"], "--plugins needs a module"),
        (["--foo"], "unknown option --foo: the name of a job comes first"),
        (["finetune", "extra"], "unrecognized arguments: extra"),
        (["finetune", "--max_steps"], "argument --max_steps: expected one argument"),
        (["finetune", "--data", "a.yaml"], "--data is a group of settings: set --data.annotations, "),
        (["llms", "--plugins", "nope"], "no plugin module 'nope'"),
        (["compare", "--plugins", "nope", "RUN"], "no plugin module 'nope'"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    done = prismatic(*argv)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr


def test_settings_that_were_renamed_keep_working(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("embedded_seeds: 3")
    assert parse_reproduce(["--embedded_seeds", "2"]).bundled_seeds == 2
    assert capsys.readouterr().err == "note: --embedded_seeds is called --bundled_seeds now\n"
    assert parse_reproduce(["--config_path", str(tmp_path / "old.yaml")]).bundled_seeds == 3


def test_parts_are_listed_with_those_of_plugins(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom prismatic.models.projectors import register_projector\n"
        "@register_projector('of-mine')\ndef build(sizes):\n    'Mine.'\n    return nn.Identity()\n"
    )
    found = prismatic("projectors", "--plugins", "mine", cwd=tmp_path).stdout
    assert re.search(r"^of-mine +Mine\.$", found, re.M)
    assert re.findall(r"^(\w[\w-]*) ", found, re.M) == ["name", *PROJECTORS, "of-mine"]
    assert re.findall(r"^(\w+) ", prismatic("losses").stdout, re.M) == ["name", *LOSSES]


def test_a_folder_of_the_users_called_eval_is_no_obstacle(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    command = [sys.executable, "-P", "-c", "from recipes.cli import main; main(['tasks'])"]  # as a console script does
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "refcoco" in done.stdout, done.stderr
