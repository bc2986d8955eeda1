import json

import numpy as np
import pytest

from bpresearch import files


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "file"
    assert files.write(path, "before") == path
    files.write(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path, monkeypatch):
    path = files.write(tmp_path / "file", "before")

    def cut_short(self, content):
        with open(self, "wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", cut_short)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_are_a_flat_object_of_finite_numbers(tmp_path):
    figures = {
        "a": np.int64(1),
        "b": 0.5,
        "c": True,
        "d": np.float64(0.25),
        "e": float("nan"),
        "f": float("inf"),
    }
    files.write_figures(tmp_path / "figures.json", figures)
    assert json.loads((tmp_path / "figures.json").read_text()) == {"a": 1, "b": 0.5, "c": 1, "d": 0.25}
    files.write_figures(None, figures)
