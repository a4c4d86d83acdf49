"""How tests watch the recipes that train on images."""

import pytest
from accelerate.state import AcceleratorState

from prismatic.training import images, loop


@pytest.fixture
def quick(monkeypatch):
    """Runs do not measure the machine, and may differ in precision."""
    monkeypatch.setattr(loop, "matmul_peak", lambda accelerator: 1e12)
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, else


@pytest.fixture
def students(monkeypatch):
    """The students that the runs of a test train, in order."""
    trained, train = [], images.train

    def spy(config, run_dir, data, model, *args, **kwargs):
        trained.append(model)
        return train(config, run_dir, data, model, *args, **kwargs)

    monkeypatch.setattr(images, "train", spy)
    return trained
