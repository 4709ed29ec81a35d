"""What a user or an extender calls says what it takes, returns and does."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

import diffusion_lm

PACKAGE = pathlib.Path(diffusion_lm.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
# Of a module that is a command, whose docstring and --help speak for them.
COMMAND = ("main", "parser")


def public(tree):
    """(name, node) of the public classes and functions of a module and of the classes' methods;
    functions in functions are nobody's but theirs."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and (
                    not inner.name.startswith("_") or inner.name in ("__init__", "__call__")
                ):
                    yield f"{node.name}.{inner.name}", inner


def undocumented(tree):
    """Of those, who have no docstring. For the methods that Python calls their class speaks."""
    return [
        name
        for name, node in public(tree)
        if not ast.get_docstring(node) and not node.name.startswith("__") and name not in COMMAND
    ]


def unannotated(tree):
    """Their parameters without a type, "return" where there is none. `self` needs none, nor do
    *args and **options, which are handed on; __init__ returns nothing."""
    found = []
    for name, node in public(tree):
        if isinstance(node, ast.ClassDef):
            continue
        given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        bare = [a.arg for a in given[("." in name) :] if a.annotation is None]
        if node.returns is None and node.name != "__init__":
            bare.append("return")
        found += [f"{name}: {arg}" for arg in bare]
    return found


@pytest.mark.parametrize("file", FILES)
def test_public_names_speak(file):
    tree = ast.parse(FILES[file].read_text())
    assert not undocumented(tree)
    assert not unannotated(tree)


def test_the_rules_themselves():
    tree = ast.parse('''
def told(a: int, *args, **options) -> int:
    """Says something."""
    def inner(b):
        return b
def silent(a, *, b: int): pass
def _own(a): pass
def main(argv: list[str]) -> int: pass
class Thing:
    """Says something."""
    def __init__(self, a): pass
    def __enter__(self): pass
    def run(self, a: int): pass
    def _own(self, a): pass
class Other: pass
''')
    assert undocumented(tree) == ["silent", "Thing.run", "Other"]
    assert unannotated(tree) == [
        "silent: a", "silent: return", "Thing.__init__: a", "Thing.run: return",
    ]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="wants mypy (extra: dev)")
def test_annotations_are_kept(tmp_path):
    """By what stands in pyproject.toml."""
    argv = [sys.executable, "-m", "mypy", f"--cache-dir={tmp_path}"]
    out = subprocess.run(argv, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
