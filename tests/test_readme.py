"""The README says what is so: its table is written from the results, its code runs."""

import importlib.util
import json
import pathlib
import re

import pytest
import yaml

import diffusion_lm

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"launch/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sotu", "kjv"])
def test_tables_are_the_results(name):
    """No figure in the README's tables is typed by hand."""
    table = script(f"{name}_table")
    results = json.loads((ROOT / f"results/{name}.json").read_text())
    with_block = script("sotu_table").readme_with
    assert with_block(README, table.render(results), table.MARK) == README
    assert {r["model"] for r in results["rows"]} == set(table.MODELS)


@pytest.mark.parametrize(
    "name,page", [("edlm_claims", "edlm_markov"), ("difformer_claims", "difformer")]
)
def test_pages_are_the_results(name, page):
    """Nor in the pages of docs/ that a script writes."""
    module = script(name)
    results = json.loads((ROOT / "results" / f"{page}.json").read_text())
    assert module.render(results) == (ROOT / "docs" / f"{page}.md").read_text()


def test_files_it_names_exist():
    names = re.findall(r"`((?:configs|diffusion_lm|launch|tests|results|docs)/[\w/.]+)", README)
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists(), name


def test_citation_is_of_this_version():
    """And of papers that the table of what is where names."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffusion_lm.__version__
    papers = citation["references"]
    cited = {paper["url"].removeprefix("https://arxiv.org/abs/") for paper in papers}
    assert len(cited) == len(papers) == 5
    table = README[README.index("## Where things are") : README.index("## Samplers")]
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", table))


def test_python_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["nats"].shape == (8,)
