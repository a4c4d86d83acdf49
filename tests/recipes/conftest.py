"""What tests of several recipes share."""

import pytest
from PIL import Image
from small_probes import measure_nothing

import prismatic
from eval.streaming import StreamingEngine
from prismatic.miniature.scenes import scene
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


@pytest.fixture(scope="module")
def engine():
    """Talks as the bundled model."""
    engine = StreamingEngine(*prismatic.load("miniature"), batch_size=4)
    yield engine
    engine.close(finish=False)


@pytest.fixture
def picture(tmp_path):
    """The file of a drawn scene."""
    path = tmp_path / "a scene.png"
    Image.fromarray(scene(3, 0, min_objects=2).image).save(path)
    return path
