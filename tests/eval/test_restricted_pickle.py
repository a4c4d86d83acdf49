"""Pickles that could run code are refused."""

import pickle
import resource
from pathlib import Path

import pytest

from eval.data.restricted_pickle import load_plain


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": Malicious()}], protocol=protocol))
    with pytest.raises(ValueError, match="could run code"):
        load_plain(path)
    assert not Path("touched-by-a-pickle").exists()
    pickle.loads(path.read_bytes())  # it would have
    assert Path("touched-by-a-pickle").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch touched'\ntR.",  # GLOBAL and REDUCE
        b"(S'touch touched'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch touched'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch touched\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pwhatever\n.",  # PERSID
        b"",
        b"\x80\x02]q\x00(",
        b"not a pickle",
        b"\x80\xff.",
    ],
)
def test_other_bad_pickles_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(ValueError, match="not a valid pickle of plain data"):
        load_plain(tmp_path / "refs.p")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"\x80\x02Nr\xff\xff\xff\xff.", b"Np4294967295\n."])
def test_memory_is_not_taken_on_a_claim(content, tmp_path):
    (tmp_path / "refs.p").write_bytes(content)  # its one object is number four billion
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_plain(tmp_path / "refs.p") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_python_2_text_is_decoded(tmp_path):
    (tmp_path / "a.p").write_bytes(b"(dp0\nS'sent'\np1\nS'caf\\xc3\\xa9'\np2\ns.")
    (tmp_path / "b.p").write_bytes(b"(dp0\nS'sent'\np1\nS'caf\\xe9'\np2\ns.")
    assert load_plain(tmp_path / "a.p") == load_plain(tmp_path / "b.p") == {"sent": "café"}
