"""How tests watch the recipes that train on images."""

import pytest
from image_runs import measure_nothing

from prismatic.training import vision as images


@pytest.fixture
def quick(monkeypatch, any_precision):
    """Runs measure neither the machine nor their operations."""
    measure_nothing(monkeypatch)


@pytest.fixture
def students(monkeypatch):
    """The students that the runs of a test train, in order."""
    trained, train = [], images.train

    def spy(config, run_dir, data, model, *args, **kwargs):
        trained.append(model)
        return train(config, run_dir, data, model, *args, **kwargs)

    monkeypatch.setattr(images, "train", spy)
    return trained
