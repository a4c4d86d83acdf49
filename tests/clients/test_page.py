"""The Python of docs/clients.md runs."""

import re
import sys

import pytest
from golden_cases import ROOT

PLACES = [ROOT / ".venv" / name for name in ("templates", "quantize")]


@pytest.mark.skipif(
    not all(any(place.iterdir()) for place in PLACES if place.is_dir()), reason="no clients are installed"
)
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, *map(str, PLACES)])
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.S)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["settings"].max_steps == 2
