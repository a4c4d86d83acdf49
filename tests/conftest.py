"""What holds for every test: no network, a core for each of several workers, one copy of what they share."""

import gc
import os
import sys

import forked
import pytest

gc.disable()  # until the tests are collected: a quarter of the time that importing takes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling anew takes a second of every process
sys.dont_write_bytecode = False
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the core from those that work
os.fsync = lambda descriptor: None  # kills lose nothing that is written, and no test takes the power away
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

FIRST = (  # files that take longest, so that no worker is left alone with one at the end
    "test_kills", "test_docs", "test_align", "test_plan", "test_failures", "test_sharding", "test_finetune",
    "test_started_again", "test_probe", "test_families", "test_runner", "test_export", "test_resume", "test_study",
)  # fmt: skip


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None) and not worker and not config.option.collectonly:
        forked.start()  # one for all workers


def pytest_xdist_setupnodes(config, specs):
    for spec in specs:
        spec.python = f"{sys.executable} {forked.__file__}"


def pytest_collection_modifyitems(items):
    order = {f"{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish():
    gc.enable()
    gc.freeze()  # looking through a million objects of the libraries again and again takes a second each time


@pytest.fixture
def any_precision():
    """Runs in this process may be in another precision than those before."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Drawn scenes and indices are cached in a folder of this session, the same for all workers."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str((base.parent if worker else base) / "cache"))
        yield
