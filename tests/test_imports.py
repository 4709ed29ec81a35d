"""The arrows of the design: who may import whom, and what is never imported."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import diffusion_lm
from diffusion_lm import main

PACKAGE = pathlib.Path(diffusion_lm.__file__).parent
ROOT = PACKAGE.parent
TOP = {"main", "train", "evaluate", "sample", "translate", "build", "config", "checkpoint"}
TOP |= {"plan", "interop", "judges", "names", "plot"}
# folder -> what of ours it may import
ALLOWED = {
    "objectives": {"keys", "ops", "processes", "schedules", "types", "objectives"},
    "samplers": {"keys", "ops", "processes", "samplers", "schedules", "types"},
    "networks": {"keys", "ops", "types", "networks"},
    "ops": {"ops", "types"},
    "evaluators": {"data", "evaluators", "keys", "ops", "parallel", "schedules", "types"},
    "data": {"data"},
}
# one-way roads between objectives
SIBLINGS = {"genmd4": {"md4"}, "edlm": {"md4", "ar"}, "sedd": {"md4"}, "rdm": {"md4"}}


def ours(path):
    """Modules of the package that a file imports, as tuples of names after diffusion_lm."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_lm"):
            base = tuple(node.module.split(".")[1:])
            for alias in node.names:
                yield base + ((alias.name,) if len(base) < 2 else ())
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("diffusion_lm"):
                    yield tuple(alias.name.split(".")[1:])


def test_folders_import_only_downwards():
    checked = 0
    for folder, allowed in ALLOWED.items():
        for path in (PACKAGE / folder).glob("*.py"):
            for module in ours(path):
                checked += 1
                assert module[0] in allowed, f"{path} imports {'.'.join(module)}"
                if folder == "objectives" and module[0] == "objectives":
                    assert module[1] in SIBLINGS.get(path.stem, set()), f"{path}: {module}"
    assert checked > 20


def test_mathematics_knows_nothing_of_runs():
    for name in ("types", "keys", "schedules", "processes", "step", "parallel", "optim", "metrics"):
        for module in ours(PACKAGE / f"{name}.py"):
            assert not TOP & set(module[:1]), f"{name} imports {module}"


def test_only_the_top_sees_config_dicts():
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE and path.stem in TOP - {"checkpoint"}:
            continue
        assert "ml_collections" not in path.read_text(), path


def test_configs_import_nothing_of_ours():
    for path in (ROOT / "configs").glob("*.py"):
        assert not list(ours(path)), path


def test_no_unsafe_loading():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "torch", "tensorflow", "clu"} & set(names), path


def test_default_run_imports_no_tensorflow_and_help_no_jax():
    code = (
        "import sys; from diffusion_lm import main, train, evaluate, sample, config;"
        "from diffusion_lm.data import text;"
        "bad = {'tensorflow', 'torch', 'clu', 'tensorflow_datasets', 'pandas'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    code = (
        "import sys; from diffusion_lm import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'jax' not in sys.modules"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    for word in ("--prompt", "[MASK:", "data.path", "--mode", "go on"):
        assert word in out.stdout


@pytest.mark.parametrize(
    "state, given, wanted",
    [
        ("always [madvise] never", "", [None, "glibc.malloc.hugetlb=1"]),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", ["glibc.malloc.hugetlb=0"]),
        (
            "always [madvise] never",
            "glibc.malloc.arena_max=9",
            ["glibc.malloc.arena_max=9", "glibc.malloc.arena_max=9:glibc.malloc.hugetlb=1"],
        ),
        ("[always] madvise never", "", [None]),
        (None, "", [None]),
    ],
)
def test_a_process_asks_for_huge_pages_by_starting_once_again(state, given, wanted, tmp_path):
    if state:
        (tmp_path / "enabled").write_text(state + "\n")
    (tmp_path / "again.py").write_text(
        "import os, sys; from diffusion_lm import main\n"
        "print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), flush=True)\n"
        f"main.huge_pages({str(tmp_path / 'enabled')!r})\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", main.STARTED)}
    env |= {"GLIBC_TUNABLES": given} if given else {}

    def said(*line, **more):
        line = [sys.executable, *line, "a b", "c"]
        out = subprocess.run(line, env=env | more, capture_output=True, text=True, cwd=tmp_path)
        return out.stdout.splitlines()

    every = [f"['a b', 'c'] {value}" for value in wanted]
    assert said("-m", "again") == said("-u", "-m", "again") == every
    # a host that runs the module is left alone, and so are processes that lost the tunables
    assert said("again.py") == said("-m", "cProfile", "-m", "again")[:1] == every[:1]
    assert said("-m", "again", **{main.STARTED: "1"}) == every[:1]
