"""What figures show of rows: values, bars of standard errors, colours, words."""

import json
import math

import numpy as np
import pytest

from diffusion_lm import plot

pytest.importorskip("matplotlib")

LOG2 = math.log(2)
FACTS = {"judge": "source", "split": "valid"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that makes the folder of a run with rows in files, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def make(name, **files):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        for stem, rows in files.items():
            (folder / f"{stem}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return name

    return make


def train(step, nats, **more):
    return {"step": step, "split": "train", "nats_per_token": nats, "grad_norm": 1.0} | more


def valid(step, nats, error, kind="upper bound", label="valid", **protocol):
    row = {"step": step, "evaluator": label, "split": "valid", "kind": kind}
    row |= {"nats_per_token": nats, "bits_per_char": nats / LOG2 / 5, "standard_error": error}
    row["perplexity"] = math.exp(nats)
    return row | {"protocol": FACTS | protocol}


def point(of, steps, perplexity, entropy, temperature=None, error=0.1):
    found = {"of": of, "perplexity_token_weighted": perplexity, "standard_error": error}
    found |= {"entropy": entropy, "entropy_standard_error": 0.05}
    return found | ({} if of == "data" else {"steps": steps, "temperature": temperature})


def generative(*points, sampler="ancestral", **protocol):
    row = {"step": 9, "evaluator": "quality", "kind": "generative", "sampler": sampler}
    return row | {"points": points, "protocol": FACTS | protocol}


def bars(container):
    """x, y, and the lower and upper ends of the bars of one drawn line."""
    line, _, (bar,) = container
    ends = np.array(bar.get_segments())[:, :, 1]
    return *line.get_data(), ends[:, 0], ends[:, 1]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(kind, *argv):
    """The figure of a command line."""
    flags = plot.parser().parse_args([kind, *argv, "--to=a.png"])
    if kind == "curves":
        return plot.curves(*plot.logged_rows(flags.runs, flags.field, flags.anyway))
    return plot.quality(plot.generative_rows(flags.runs, flags.evaluator, flags.anyway))


def test_curves_show_training_and_evaluation(run):
    """With bars in the units of the field, and what kind of figure it is."""
    a = run("a", metrics=[train(5, 3.0), train(10, 2.0), valid(10, 2.5, 0.2)])
    exact = [valid(10, 1.5, 0.0, "exact"), valid(20, 1.0, 0.0, "exact")]
    b = run("b", metrics=[train(5, 1.0), *exact])
    figure = drawn("curves", a, b)
    (axis,) = figure.axes
    # training has no bits per character here, but the evaluators do
    assert axis.get_ylabel() == "bits per char"
    assert legend(figure) == ["a, valid, upper bound", "b, valid, exact"]
    x, y, low, high = bars(axis.containers[0])
    assert x.tolist() == [10] and y == pytest.approx([2.5 / LOG2 / 5])
    assert low == pytest.approx([2.3 / LOG2 / 5]) and high == pytest.approx([2.7 / LOG2 / 5])
    x, y, low, high = bars(axis.containers[1])
    assert x.tolist() == [10, 20] and low.tolist() == y.tolist() == high.tolist()
    figure = drawn("curves", a, b, "--field=nats_per_token")
    (axis,) = figure.axes
    assert legend(figure)[:2] == ["a, training", "b, training"]
    assert axis.lines[0].get_data()[1].tolist() == [3.0, 2.0]
    assert axis.lines[0].get_color() == axis.containers[0][0].get_color()
    assert axis.lines[0].get_color() != axis.containers[1][0].get_color()
    assert bars(axis.containers[0])[3] == pytest.approx([2.7])
    figure = drawn("curves", run("c", metrics=[valid(10, 2.5, 0.2, label="ptb")]))
    assert legend(figure) == ["ptb (valid), upper bound"]
    (axis,) = drawn("curves", a, "--field=perplexity").axes
    assert bars(axis.containers[0])[3] == pytest.approx([math.exp(2.5) * 1.2])


def test_long_curves_are_smoothed_and_say_so(run):
    """The mean of the neighbours; at the ends of those that there are."""
    noisy = [train(step, step % 2) for step in range(200)]
    figure = drawn("curves", run("a", metrics=noisy))
    x, y = figure.axes[0].lines[0].get_data()
    assert legend(figure) == ["training (mean of 5 rows)"] and len(x) == 200
    assert y[[0, 1, 100, 101]] == pytest.approx([1 / 3, 2 / 4, 2 / 5, 3 / 5])
    assert y[[-1, -2]] == pytest.approx([2 / 3, 2 / 4])
    assert legend(drawn("curves", run("b", metrics=noisy[:99]))) == ["training"]


def test_curves_take_what_all_runs_have(run):
    a = run("a", metrics=[train(5, 3.0), valid(5, 2.5, None)])
    b = run("b", metrics=[train(5, 3.0, bits_per_char=None, loss="nan")])
    (axis,) = drawn("curves", a, b).axes
    assert axis.get_ylabel() == "nats per token"
    _, _, (bar,) = axis.containers[0]
    assert not any(map(len, bar.get_segments()))  # one draw: no error is known
    c = run("c", metrics=[{"step": 1, "split": "train", "grad_norm": 2.0}])
    with pytest.raises(ValueError, match="have loss in .* may be: grad_norm, nats_per_token$"):
        plot.logged_rows([a, b], "loss", False)
    with pytest.raises(ValueError, match="bits_per_char or nats_per_token .* may be: grad_norm$"):
        plot.logged_rows([a, c], None, False)


def test_quality_over_steps(run):
    """Lines in order of steps, one a temperature; the real data's level; no control."""
    model = [point("model", n, 10 + n, 1 + t, t) for n in (16, 4) for t in (0.5, 1.0)]
    control, real = point("control", 4, 1.0, 0.1, 0.3), point("data", None, 9.0, 2.5)
    a = run("a", eval=[generative(), generative(*model, control, real)])
    figure = drawn("quality", a)
    assert legend(figure) == ["real data", "ancestral, T=0.5", "ancestral, T=1"]
    left, right = figure.axes
    assert left.get_yscale() == left.get_xscale() == right.get_xscale() == "log"
    for panel, wanted, error in [(left, [14, 26], [1.4, 2.6]), (right, [2, 2], [0.05, 0.05])]:
        x, y, low, high = bars(panel.containers[1])
        assert x.tolist() == [4, 16] and y.tolist() == wanted and len(panel.containers) == 2
        assert low == pytest.approx(np.subtract(wanted, error))
        assert high == pytest.approx(np.add(wanted, error))
    levels = [[line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"]
              for axis in figure.axes]  # fmt: skip
    assert levels == [[9.0], [2.5]]


def test_quality_of_runs(run):
    """A colour a run; what knows no steps is a level, but alone it is refused."""
    real = point("data", None, 9.0, 2.5)
    a = run("a", eval=[generative(point("model", 4, 14, 2, 1.0), real)])
    b = run("b", eval=[generative(point("model", None, 8, 2.4), real, sampler="autoregressive")])
    figure = drawn("quality", a, b)
    assert set(legend(figure)) == {"real data", "a, ancestral, T=1", "b, autoregressive, no steps"}
    (level,) = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert level.get_ydata()[0] == 8
    assert level.get_color() != figure.axes[0].containers[0][0].get_color()
    with pytest.raises(ValueError, match="no sampler of b has steps"):
        drawn("quality", b)
    c = run("c", eval=[generative(point("model", 4, 14, 2, 1.0), real, split="test")])
    figure = drawn("quality", a, c, "--anyway")
    assert {"a, real data", "c, real data"} < set(legend(figure))


@pytest.mark.parametrize("kind", ["curves", "quality"])
def test_unlike_rows_are_refused(run, kind, capsys):
    """In one line, but with --anyway; what is drawn is a PNG."""
    model, real = point("model", 4, 14, 2, 1.0), point("data", None, 9.0, 2.5)
    names = [
        run(s, metrics=[valid(9, 2, 0.1, split=s)], eval=[generative(model, real, split=s)])
        for s in ("valid", "test")
    ]
    assert plot.main([kind, *names, "--to=a.png"]) == 2
    error = capsys.readouterr().err
    assert "split: valid and test" in error and error.count("\n") == 1
    assert plot.main([kind, *names, "--to=a.png", "--anyway"]) == 0
    with open("a.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_mistakes_are_one_line(run, capsys):
    a = run("a", metrics=[train(5, 3.0)])
    for argv, words in [
        (["curves", a, "--to=a.png", "--field=bleu"], "may be: grad_norm, nats_per_token"),
        (["curves", "nowhere", "--to=a.png"], "no run in 'nowhere'"),
        (["curves", a, "--to=a.pdf"], "ends in .png"),
        (["quality", a, "--to=a.png"], "has no row of a generative evaluator"),
    ]:
        assert plot.main(argv) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
