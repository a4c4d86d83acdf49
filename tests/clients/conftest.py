import pytest

import prismatic


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The bundled model's folder, as anybody saves it."""
    folder = tmp_path_factory.mktemp("model")
    for part in prismatic.load("miniature"):
        part.save_pretrained(folder)
    return folder
