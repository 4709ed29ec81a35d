"""Rows of several runs side by side, and the protocols that keep them apart."""

import json

import pytest

from diffusion_lm import compare

FACTS = {"split": "test", "context": 128, "tokenizer": "gpt2-7-a", "data": "d"}


def row(**changes):
    facts = FACTS | changes.pop("protocol", {})
    base = {"step": 5, "evaluator": "valid", "kind": "upper bound", "bits_per_char": 1.5}
    return base | {"perplexity": 9.25, "standard_error": 0.01, "protocol": facts} | changes


@pytest.fixture
def run(tmp_path):
    """A function that makes the folder of a run with rows in eval.jsonl and metrics.jsonl."""

    def make(name, rows, logged=()):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        for file, content in (("eval.jsonl", rows), ("metrics.jsonl", logged)):
            if content:
                (folder / file).write_text("".join(json.dumps(r) + "\n" for r in content))
        return str(folder)

    return make


def test_rows_of_one_protocol_are_shown(run, capsys):
    a = run("a", [row(bits_per_char=9.0), row()])  # the last one counts
    b = run("b", [row(kind="exact", bits_per_char=1.25, standard_error=0.0)])
    assert compare.main([a, b]) == 0
    out, err = capsys.readouterr()
    title, names, first, second = out.strip().splitlines()
    assert title == "valid (split test, context 128, tokenizer gpt2-7-a, data d)"
    assert names.split() == ["run", "step", "kind", "perplexity", "bits_per_char", "standard_error"]
    assert first.split() == [a, "5", "upper", "bound", "<=", "9.2500", "<=", "1.5000", "0.0100"]
    assert second.split() == [b, "5", "exact", "9.2500", "1.2500", "0.0000"]
    assert err == ""


def test_unlike_protocols_are_refused_by_name(run, capsys):
    a = run("a", [row(), row(evaluator="ptb")])
    b = run("b", [row(protocol={"context": 64, "wrap": "ends"}), row(evaluator="ptb")])
    assert compare.main([a, b]) == 1
    out, err = capsys.readouterr()
    assert f"valid: context differs: {a}: 128; {b}: 64" in err
    assert f"valid: wrap differs: {a}: None; {b}: ends" in err
    assert "--anyway" in err and "tokenizer" not in err
    assert out.startswith("ptb (") and "valid" not in out  # the like ones are shown
    assert compare.main([a, b, "--anyway", "--evaluator=valid"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("valid (split test, tokenizer gpt2-7-a, data d)") and "context" in err


def test_frontiers_are_left_to_the_plot(run, capsys):
    front = row(evaluator="quality", kind="generative", points=[])
    assert compare.main([run("a", [front]), run("b", [row(), front])]) == 0
    assert "quality: a frontier, which python -m diffusion_lm.plot" in capsys.readouterr().out


def test_what_training_logged_counts_where_no_evaluation_does(run, capsys):
    a = run("a", [], [row(bits_per_char=2.0), {"split": "train", "loss": 1.0}])
    b = run("b", [row(bits_per_char=3.0)], [row(bits_per_char=4.0)])
    assert compare.main([a, b, "--json"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["run"], r["bits_per_char"]) for r in made] == [(a, 2.0), (b, 3.0)]


@pytest.mark.parametrize("rows,more,message", [
    ([row()], ["--evaluator=vlaid"], "no row of vlaid"),
    ([], [], "there are: none; --mode=eval writes them"),
])  # fmt: skip
def test_nothing_to_show(run, capsys, rows, more, message):
    assert compare.main([run("a", rows), *more]) == 2
    assert message in capsys.readouterr().err


def test_folders_that_are_no_runs_and_broken_logs(run, capsys, tmp_path):
    assert compare.main([str(tmp_path / "no")]) == 2
    assert "it has no config.json" in capsys.readouterr().err
    a = run("a", [row()])
    (tmp_path / "a" / "eval.jsonl").write_text('{"step": 1}\n{"st')
    assert compare.main([a]) == 2
    assert "eval.jsonl, line 2 is not JSON" in capsys.readouterr().err
