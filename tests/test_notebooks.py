"""Every notebook runs from its first cell to its last; its own assertions are the test."""

import json
import pathlib
import re
import subprocess
import sys
import types

import matplotlib
import matplotlib.pyplot
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code_of(path):
    return ["".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "code"]


class HTML:
    """In place of IPython.display.HTML, which a notebook's own kernel brings."""

    def __init__(self, data):
        assert data.startswith("<iframe")


@pytest.fixture
def kernel(monkeypatch):
    """What a notebook finds in its kernel."""
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.version_info, ipython.get_ipython = (9, 0), lambda: None  # matplotlib asks for these
    display.HTML = HTML
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


@each
def test_notebook(path, kernel):
    code = code_of(path)
    assert any("assert" in cell for cell in code)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        exec(compile(cell, f"{path.name}, code cell {number}", "exec"), names)


@each
def test_is_stored_without_outputs(path):
    for cell in cells_of(path):
        assert not cell.get("outputs") and cell.get("execution_count") is None


@each
def test_first_cell_installs_on_colab_alone(path, monkeypatch):
    first, ran = code_of(path)[0], []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    exec(first, {})
    assert not ran
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    with pytest.raises(AssertionError, match="REPOSITORY"):
        exec(first, {})
    exec(first.replace('REPOSITORY = ""', 'REPOSITORY = "address"'), {})
    clone, install = ran
    assert clone[:2] == ["git", "clone"] and clone[-2] == "address"
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == f"{clone[-1]}[plots]"


def test_readme_lists_them():
    named = re.findall(r"`notebooks/(\w+)\.ipynb`", (ROOT / "README.md").read_text())
    assert sorted(named) == [path.stem for path in NOTEBOOKS]
