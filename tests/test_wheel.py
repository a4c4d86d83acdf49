"""The wheel holds what the package needs, and nothing else; it works where only its dependencies are."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser

import pytest
from golden_cases import ROOT

TOP = {"prismatic", "vision_backbones", "recipes", "eval"}
TRIED = """
import sys
sys.path = [place for place in sys.path if place not in ("", {root!r})] + [{installed!r}, {packages!r}]
import prismatic, recipes
assert prismatic.__file__.startswith({installed!r}) and recipes.__file__.startswith({installed!r})
model, processor = prismatic.load("miniature")
from vision_backbones import create_backbone
create_backbone("miniature-aligned")
from recipes.config.finetune import parse_finetune
assert parse_finetune(["--config_path", "smollm2-lora.yaml", "--data.annotations", "miniature:8"]).stage == "lora"
from eval.tasks import list_tasks
print(len(list_tasks()), model.num_parameters())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Could not find a version" in done.stderr:
        pytest.skip("setuptools cannot be fetched")
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = folder.glob("*.whl")
    return found, files


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_it(wheel):
    found, files = wheel
    with zipfile.ZipFile(found) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    wanted = {name for name in files if name.split("/")[0] in TOP}
    assert wanted <= names, f"missing: {sorted(wanted - names)[:5]}"
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == TOP
    assert all(f"{top}/py.typed" in names for top in TOP)
    fields = Parser().parsestr(metadata)
    assert fields["Name"] == "prismatic-locality" and "MIT" in (fields["License-Expression"], fields["License"])
    assert any(name.endswith("LICENSE") for name in names) and "python" not in (fields["Author"] or "")


@pytest.mark.slow
def test_it_works_where_the_sources_are_not(wheel, tmp_path):
    found, _ = wheel
    installed = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(found)]
    subprocess.run(command, check=True, capture_output=True)
    code = TRIED.format(root=str(ROOT), installed=str(installed), packages=sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-S", "-c", code]  # without site, which knows of an editable installation
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 12
