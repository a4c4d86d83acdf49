"""The examples of docs/data.md, run one after the other, give the rows that they promise."""

import re

import numpy as np
import pytest
from datasets import config as datasets_config
from golden_cases import ROOT

from prismatic.data.row_layouts import LAYOUTS
from prismatic.data.sources import open_source

PAGE = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
WRITTEN = {"llava": "llava.json", "cauldron": "cauldron.parquet", "messages": "messages", "caption": "captions.tar"}


def test_an_example_of_each_layout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = {}
    for block in BLOCKS:
        exec(compile(block, "docs/data.md", "exec"), names)
    assert capsys.readouterr().out == "Red. (64, 48)\n" * 3 + "A red rectangle. (64, 48)\n"
    assert WRITTEN.keys() == LAYOUTS.keys()
    for layout, location in WRITTEN.items():
        source = open_source(location, layout)
        assert np.asarray(source.load_image(0))[0, 0].tolist() == [255, 0, 0]
        others = [name for name in LAYOUTS if name != layout]
        for other in others:
            with pytest.raises(ValueError, match="expected those of layout|nothing in column"):
                open_source(location, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_page_names_every_layout_and_its_columns(layout):
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{layout}` |"))
    assert all(f"`{column}`" in line for column in LAYOUTS[layout].columns)
