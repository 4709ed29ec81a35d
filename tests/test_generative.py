"""Generative quality: figures by hand and by a known source, judges, the frontier and its plot."""

import json
import math
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_lm import (
    build,
    checkpoint,
    compare,
    config,
    evaluate,
    judges,
    main,
    parallel,
    plot,
    sample,
)
from diffusion_lm.data import markov, tokenizers
from diffusion_lm.evaluators import generative
from diffusion_lm.types import Judge, Sampler, Samples

MARKOV = {"name": "markov", "vocab_size": 4, "order": 1, "length": 16, "other_windows": 40}
MARKOV |= {"train_windows": 64}
ORDERED = {"objective": "ar", "sampler": "autoregressive"}
QUALITY = {"name": "generative", "judge": "source", "samples": 20, "batch_size": 8}


def settings(data=MARKOV, objective="md4", sampler="ancestral", **changes):
    """A tiny config; `changes` are sections."""
    base = {
        "data": dict(data),
        "network": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
        "objective": {"name": objective},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "warmup": 0},
        "sampler": {"name": sampler},
        "train": {"steps": 10, "batch_size": 8, "log_every": 10, "eval_every": 10},
    }
    return ConfigDict(base | changes)


def run_of(resolved, mesh=None):
    """(parts, evaluate.Run) with parameters whose predictions are far from uniform."""
    setup = build.setup(resolved)
    params = jax.device_get(setup.init().params)  # for any mesh
    kernel = params["network"]["head"]["kernel"]
    params["network"]["head"]["kernel"] = 0.4 * jax.random.normal(jax.random.key(0), kernel.shape)
    mesh, objective = mesh or setup.mesh, setup.parts.objective
    step = evaluate.make_eval_step(objective, mesh)
    return setup.parts, evaluate.Run(setup.parts.data, objective, params, mesh, 0, step)


def text_data(text_file, **more):
    data = {"name": "text", "source": "files", "path": text_file, "tokenizer": "bytes"}
    return data | {"length": 16} | more


def train(path, made):
    (path.parent / f"{path.name}.json").write_text(json.dumps(made.to_dict()))
    assert main.main([f"--config={path}.json", f"--workdir={path}"]) == 0
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text_file):
    """Folders of finished runs of ten steps on the bytes of a text."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"md4": settings(text_data(text_file), sampler="confidence")}
    made["ar"] = settings(text_data(text_file), **ORDERED)
    return {name: train(folder / name, one) for name, one in made.items()}


# Figures.


def test_averages_by_hand():
    """Texts of perplexity 2 and 8, of 2 tokens and 1."""
    got = generative.likely(np.log([4.0, 8.0]), np.array([2, 1]))
    mean = 5 * math.log(2) / 3
    assert got["perplexity_token_weighted"] == pytest.approx(2 ** (5 / 3))
    assert got["perplexity_mean_over_sequences"] == pytest.approx(5)
    assert got["nats_per_judged_token"] == pytest.approx(mean) and got["judged_tokens"] == 3
    residual = np.log([4.0, 8.0]) - mean * np.array([2, 1])
    error = np.std(residual, ddof=1) / math.sqrt(2) / 1.5  # of a ratio of means
    assert got["standard_error"] == pytest.approx(error)
    same = generative.likely(np.log([9.0, 9.0]), np.array([2, 2]))
    assert same["perplexity_mean_over_sequences"] == pytest.approx(3)
    assert same["perplexity_token_weighted"] == pytest.approx(3) and same["standard_error"] == 0


def test_standard_error_covers_the_truth():
    """Over many sets of texts of unequal lengths it is the spread of the mean."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        counts = rng.integers(1, 9, 30)
        got = generative.likely(rng.gamma(2.0, 0.5, 30) * counts, counts)
        means.append(got["nats_per_judged_token"])
        errors.append(got["standard_error"])
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.06)


def test_variety_by_hand():
    got = generative.varied(np.array([[0, 0, 1, 1], [2, 2, 2, 2]]))
    assert got["entropy"] == pytest.approx(math.log(2) / 2)
    assert got["entropy_standard_error"] == pytest.approx(math.log(2) / 2)
    pooled = 0.5 * math.log(4) + 0.5 * math.log(2)
    assert got["pooled_entropy"] == pytest.approx(pooled)
    assert got["distinct_1"] == 3 / 8 and got["distinct_2"] == 4 / 6
    assert got["repetition"] == 5 / 6
    assert generative.entropy(np.arange(10)) == pytest.approx(math.log(10))
    assert str(generative.entropy(np.zeros(10))) == "0.0"


def test_source_gives_the_enumerated_probability():
    """The product of the table's entries; over all texts of a length they sum to 1."""
    data = markov.make(**{k: v for k, v in MARKOV.items() if k != "name"})
    judge, table = judges.source("judge", data), data.source
    x = np.array([[0, 3, 1, 1], [2, 2, 2, 2]])
    nats, counts = judge.score(x, 8)
    wanted = [0.25 * table[0, 3] * table[3, 1] * table[1, 1], 0.25 * table[2, 2] ** 3]
    np.testing.assert_allclose(np.exp(-nats), wanted)
    assert counts.tolist() == [4, 4]
    every = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4)
    assert np.exp(-judge.score(every, 8)[0]).sum() == pytest.approx(1)


def test_a_judge_has_a_tokenizer_of_its_own(monkeypatch):
    """Not that of the model, though their configs say the same: "file" is in the run's folder; and
    it must be as it was."""
    config = ConfigDict({"data": {"name": "text", "tokenizer": "file"}})
    read, own = [], SimpleNamespace(windows=lambda split: SimpleNamespace(fingerprint="own"))
    monkeypatch.setattr(build, "_found", lambda *_: (config, {"data": "before"}, 0))
    monkeypatch.setattr(
        build.names, "make", lambda config, section, workdir: read.append(workdir) or own
    )
    with pytest.raises(ValueError, match="the run in 'theirs' is not what it was"):
        build._judge("judge", "theirs", config, None)
    assert read == ["theirs"]


# Samples.


def test_a_collapse_is_seen_for_what_it_is():
    """One token over and over is likely under a source that likes to repeat it: better perplexity
    than real text, but no entropy."""
    resolved = config.resolve(settings(evaluators={"quality": QUALITY}), [])
    parts, run = run_of(resolved)
    sticky = np.full((4, 4), 0.25)
    sticky[2] = [0.05, 0.05, 0.85, 0.05]
    x = markov.draw(sticky, 40, 16, np.random.default_rng(0))
    splits = {"valid": parts.data.windows("valid")._replace(tokens=x)}
    data = parts.data._replace(source=sticky, splits=splits)

    def sampler(**fields):
        def draw(params, keys_B, prompt_BL, free_BL, cond=None):
            return Samples(jnp.full_like(prompt_BL, 2), jnp.int32(1))

        return Sampler(draw), {"name": "constant", **fields}

    judge = judges.source("judge", data)
    evaluator = generative.make(data=data, samplers=sampler, judge=judge, samples=20, batch_size=8)
    row = evaluator(run._replace(data=data))
    point, control, real = row["points"]
    assert [p["of"] for p in row["points"]] == ["model", "control", "data"]
    assert point["perplexity_token_weighted"] < 0.7 * real["perplexity_token_weighted"]
    assert point["entropy"] == 0 == point["pooled_entropy"] and point["repetition"] == 1
    assert real["entropy"] > 0.8 and real["repetition"] < 0.9
    assert point["distinct_2"] == 1 / (20 * 15) and real["distinct_2"] > 10 * point["distinct_2"]


@pytest.mark.parametrize("kind", [{}, ORDERED], ids=["md4", "ar"])
def test_figures_know_neither_batches_nor_meshes(kind):
    """Every figure but the network calls of a batch is the same; another seed gives others."""

    def points(mesh=None, **options):
        quality = QUALITY | {"temperatures": (1.0,)} | ({} if kind else {"steps": (4,)}) | options
        resolved = config.resolve(settings(**kind, evaluators={"quality": quality}), [])
        parts, run = run_of(resolved, mesh)
        (row,) = evaluate.evaluate(parts, run, 3)
        assert [p.pop("of") for p in row["points"]] == ["model", "control", "data"]
        return [
            {k: v for k, v in p.items() if k != "calls" and v is not None} for p in row["points"]
        ]

    first, alone = points(), parallel.make_mesh(devices=jax.devices()[:1])
    for others in (points(batch_size=16), points(alone, batch_size=5)):
        for a, b in zip(first, others, strict=True):
            assert a == pytest.approx(b, rel=1e-6)
    other = points(seed=1)
    assert other[0] != first[0] and other[2] == first[2]
    assert first[0]["distinct_2"] > 0.03 and first[0]["entropy_standard_error"] > 0.01


def test_row_says_what_was_done(capsys):
    quality = QUALITY | {"steps": (8, 2), "temperatures": (0.5, 1.0)}
    parts, run = run_of(config.resolve(settings(evaluators={"quality": quality}), []))
    (row,) = evaluate.evaluate(parts, run, 3)
    settings_ = [(p["of"], p.get("steps"), p.get("temperature")) for p in row["points"]]
    pairs = [("model", n, t) for n in (8, 2) for t in (0.5, 1.0)]
    assert settings_ == [*pairs, ("control", 2, 0.3), ("data", None, None)]
    assert [p["calls"] for p in row["points"][:5]] == [8, 8, 2, 2, 2]
    low, high = row["points"][0], row["points"][1]
    assert low["entropy"] < high["entropy"]
    assert row["kind"] == "generative" and row["sampler"] == "ancestral" and row["seed"] == 0
    wanted = {"judge", "judge_tokenizer", "judge_context", "judge_dtype", "first_token"}
    wanted |= {"retokenized", "averages", "samples", "split", "data"}
    assert wanted <= set(row["protocol"])
    lines = evaluate.describe(row).splitlines()
    assert len(lines) == 7 and "control steps=2 T=0.3: perplexity" in lines[5]


def test_samples_are_those_of_the_command_line():
    """With the same seed, `diffusion_lm.sample` writes the texts that are judged."""
    parts, run = run_of(config.resolve(settings(), []))
    drawn = run.draw(parts.sampler, 10, seed=3, batch_size=8)
    sampler = sample.compiled(parts.sampler, run.mesh)
    texts = [s["text"] for s in sample.samples(parts, run.params, sampler, num=10, seed=3)]
    assert [parts.data.tokenizer.decode(x) for x in drawn.tokens] == texts
    assert drawn.tokens.shape == (10, 16) and len(set(texts)) > 5


# Judges.


def judge_with(run, data, **changes):
    """The judge of untrained parameters, its data changed, of the texts of `data`."""
    reads, facts = run.data._replace(**changes), {"judge": "x"}
    return judges.run("judge", run.objective, lambda: run.params, run.mesh, reads, data, facts)


def test_judge_equals_the_nll_of_its_run(runs):
    resolved = config.resolve(config.load(f"{runs['md4']}/config.json"), [])
    data = build.parts(resolved).data
    judge = build._judge("judge", runs["ar"], resolved, data)
    x = np.asarray(data.windows("valid").tokens[:11], np.int32)
    nats, counts = judge.score(x, 8)
    setup = build.setup(config.resolve(config.load(f"{runs['ar']}/config.json"), []))
    saves = checkpoint.Checkpoints(runs["ar"], read_only=True)
    params = saves.restore(setup.abstract).params
    np.testing.assert_allclose(nats, setup.parts.objective.nll(params, {"x": x}), rtol=1e-5)
    assert counts.tolist() == [16] * 11 and np.std(nats) > 0.1
    assert not judge.protocol["retokenized"] and len(judge.protocol["judge_weights"]) == 16
    np.testing.assert_allclose(judge.score(x, 16)[0], nats, rtol=1e-5)


def test_longer_texts_are_cut_into_chunks():
    """16 tokens in a context of 6: chunks of 6, 6 and 4, each after an end token."""
    parts, run = run_of(config.resolve(settings(**ORDERED), []))
    judge = judge_with(run, parts.data, length=6)
    x = np.asarray(parts.data.windows("valid").tokens[:5], np.int32)
    nats, counts = judge.score(x, 8)
    cut = [x[:, a:b] for a, b in ((0, 6), (6, 12), (12, 16))]
    each = [parts.objective.nll(run.params, {"x": part}) for part in cut]
    np.testing.assert_allclose(nats, np.sum(each, axis=0), rtol=1e-5)
    assert counts.tolist() == [16] * 5 and judge.protocol["judge_context"] == 6


def test_features_are_of_the_last_token():
    """What stands behind a text's end changes nothing, what stands before it does."""
    parts, run = run_of(config.resolve(settings(**ORDERED), []))
    x = np.asarray(parts.data.windows("valid").tokens[:3], np.int32)
    judge = judge_with(run, parts.data, length=6)  # which reads the first 6
    other = np.concatenate([x[:, :6], 3 - x[:, 6:]], axis=1)
    got = judge.features(x, 8)
    assert got.shape == (3, 16) and not np.allclose(got, judge.features(3 - x, 8))
    np.testing.assert_array_equal(got, judge.features(other, 8))
    whole = parts.objective.features(run.params, {"x": x, "last": np.full(3, 5)})
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-6)


def test_mauve_by_the_extra():
    """Texts of one kind score higher than those of another."""
    pytest.importorskip("mauve")
    rng = np.random.default_rng(0)
    real, like, other = (rng.normal(mean, 1, (200, 8)) for mean in (0, 0, 2))
    assert generative.mauve_of(real, like) > 0.8 > 0.2 > generative.mauve_of(real, other)


def test_chunks_by_hand():
    texts = [np.arange(1, 6), np.arange(1, 3)]
    x, there, owner = judges.chunks(texts, 3, 9)
    assert x.tolist() == [[1, 2, 3], [4, 5, 9], [1, 2, 9]] and owner.tolist() == [0, 0, 1]
    assert there.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert judges.chunks(texts, 100, 9)[0].shape == (2, 8)


def test_another_tokenizer_reads_the_text(runs):
    """GPT-2's tokens of what was written, an end token as an end token."""
    own = tokenizers.load(name="bytes")
    theirs = tokenizers.load(name="gpt2", vocab_size=1000)
    ids = [*own.encode("the people"), own.end, *own.encode("of hope"), own.end, own.end]
    got = judges.retokenized(np.array(ids), own, theirs)
    wanted = [*theirs.encode("the people"), theirs.end, *theirs.encode("of hope")]
    assert got.tolist() == [*wanted, theirs.end, theirs.end]
    same = judges.retokenized(np.array([own.end]), own, theirs)
    assert same.tolist() == [theirs.end]


def test_what_has_no_token_becomes_the_replacement():
    own = tokenizers.load(name="bytes")
    theirs = tokenizers.load(name="characters", alphabet="ab\ufffd")
    ids = np.array([*own.encode("abé"), own.end, *own.encode("b")])
    assert judges.retokenized(ids, own, theirs).tolist() == [0, 1, 2, theirs.end, 1]
    with pytest.raises(ValueError, match="not in the alphabet"):
        judges.retokenized(ids, own, tokenizers.load(name="characters", alphabet="ab"))


def test_a_judge_that_cannot_read_is_refused(text_file):
    """Characters cannot write all bytes, but bytes all characters."""
    characters = text_data(text_file, tokenizer="characters")
    parts, run = run_of(config.resolve(settings(characters, **ORDERED), []))
    there, judging = run_of(config.resolve(settings(text_data(text_file), **ORDERED), []))
    with pytest.raises(ValueError, match=r"tokenizer of 'x' \(characters\) cannot write all"):
        judge_with(run, there.data)
    judge = judge_with(judging, parts.data)
    x = np.asarray(parts.data.windows("valid").tokens[:5], np.int32)
    read = (parts.data.tokenizer, there.data.tokenizer)
    ids = np.stack([judges.retokenized(a, *read) for a in x])
    nats, counts = judge.score(x, 8)
    wanted = there.objective.nll(judging.params, {"x": ids})
    np.testing.assert_allclose(nats, wanted, rtol=1e-5)
    assert judge.protocol["retokenized"] and counts.tolist() == [16] * 5


# The command line, and what it refuses.

NEW = "--config.evaluators.quality"


def test_a_finished_run_gets_a_new_evaluator(runs, capsys, tmp_path):
    """And its row becomes a frontier, unless another was measured in another way."""
    options = [f"{NEW}.name=generative", f"{NEW}.judge={runs['ar']}", f"{NEW}.batch_size=8"]
    options += [f"{NEW}.samples=8"]
    more = [f"{NEW}.steps=4", f"{NEW}.temperatures=0.5,1"]
    assert main.main([f"--workdir={runs['md4']}", "--mode=eval", *options, *more]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row == compare.rows_of(runs["md4"])["quality"]
    assert [p.get("temperature") for p in row["points"]] == [0.5, 1.0, 0.3, None]
    assert (
        row["protocol"]["judge"] == pathlib.Path(runs["ar"]).name
        and not row["protocol"]["retokenized"]
    )
    own = json.loads((pathlib.Path(runs["md4"]) / "config.json").read_text())
    assert not own["evaluators"]  # of the run itself nothing has changed
    assert main.main([f"--workdir={runs['ar']}", "--mode=eval", *options]) == 0
    pytest.importorskip("matplotlib")
    path = tmp_path / "frontier.png"
    argv = ["frontier", runs["md4"], runs["ar"], f"--to={path}"]
    assert plot.main(argv) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    other = row | {"protocol": row["protocol"] | {"split": "test"}}
    with open(f"{runs['ar']}/eval.jsonl", "a") as file:
        file.write(json.dumps(other) + "\n")
    capsys.readouterr()
    assert plot.main(argv) == 2
    assert "split: valid and test" in capsys.readouterr().err
    assert plot.main([*argv, "--anyway"]) == 0


def test_plot_refuses_in_one_line(runs, capsys):
    for argv, words in [
        ([runs["ar"], "--to=a.png", "--evaluator=x"], "has no row of x"),
        (["nowhere", "--to=a.png"], "no run in 'nowhere'"),
        ([runs["ar"], "--to=a.jpg"], "ends in .png"),
    ]:
        assert plot.main(["frontier", *argv]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "flags,words",
    [
        (["judge=JUDGE md4"], "(objective 'md4') has no exact likelihood of single tokens"),
        (["judge=nowhere"], "config.evaluators.quality.judge: no run in 'nowhere'"),
        (["judge=source"], "wants data with known probabilities"),
        ([], "config.evaluators.quality.judge is required"),
        (["judge=JUDGE ar", "sampler=gaussian"], "unknown field"),
        (["judge=JUDGE ar", "mauve=yes"], "mauve must be true or false"),
        (["judge=JUDGE ar", "steps=2,x"], "must be int, got 'x'"),
        (["judge=JUDGE ar", "steps=2.5"], "must be int"),
        (["judge=JUDGE ar", "steps=0"], "sampler.num_steps must be at least 1"),
        (["judge=JUDGE ar", "temperatures=-1"], "temperature must be 0 or more"),
        (["judge=JUDGE ar", "samples=1"], "samples must be at least 2"),
        (["judge=JUDGE ar", "split=dev"], "unknown split"),
        (["judge=JUDGE ar", "batch_size=12"], "not divisible by the 8 devices"),
    ],
)
def test_refusals_are_one_line(flags, words, runs, capsys):
    flags = [
        flag.replace("JUDGE md4", runs["md4"]).replace("JUDGE ar", runs["ar"]) for flag in flags
    ]
    options = [f"{NEW}.name=generative", *(f"{NEW}.{flag}" for flag in flags)]
    assert main.main([f"--workdir={runs['md4']}", "--mode=eval", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


def test_samplers_are_asked_for_what_they_have():
    """Score sampling has no temperature, left-to-right sampling no steps."""
    for kind, options, words in [
        ({"objective": "sedd", "sampler": "score"}, {}, "the score sampler has no temperature"),
        (ORDERED, {"steps": (4,)}, "the autoregressive sampler has no num_steps .* temperature"),
    ]:
        resolved = config.resolve(settings(**kind, evaluators={"quality": QUALITY | options}), [])
        with pytest.raises(ValueError, match=words):
            build.parts(resolved)
    quality = QUALITY | {"temperatures": (), "steps": (2,)}
    made = settings(objective="sedd", sampler="score", evaluators={"quality": quality})
    parts, run = run_of(config.resolve(made, []))
    (row,) = evaluate.evaluate(parts, run, 0)
    assert [(p["of"], p.get("steps")) for p in row["points"]] == [("model", 2), ("data", None)]


def test_fields_of_several_values(tmp_path):
    """From a file, JSON and the command line: a tuple of the type in the signature."""
    made = settings(evaluators={"quality": QUALITY | {"temperatures": [1, 0.5]}})
    resolved = config.resolve(made, ["evaluators.quality.steps=2,8"])
    quality = resolved.evaluators.quality
    assert quality.temperatures == (1.0, 0.5) and quality.steps == (2, 8)
    again = config.resolve(ConfigDict(json.loads(config.to_json(resolved))), [])
    assert again.to_dict() == resolved.to_dict()
    empty = config.resolve(made, ["evaluators.quality.temperatures="])
    assert empty.evaluators.quality.temperatures == ()
    made.evaluators.quality.steps = 3
    with pytest.raises(ValueError, match="steps must be several values, got 3"):
        config.resolve(made, [])


def test_mauve_is_refused_where_it_cannot_be_had(monkeypatch):
    made = settings(evaluators={"quality": QUALITY | {"mauve": True}})
    with pytest.raises(ValueError, match="mauve wants a judge with features"):
        build.parts(config.resolve(made, []))
    data = build.parts(config.resolve(settings(), [])).data
    judge = Judge(None, {}, lambda tokens, batch_size: tokens)
    monkeypatch.setattr(generative.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"diffusion_lm\[mauve\]"):
        generative.make(data=data, samplers=None, judge=judge, mauve=True)


def test_new_evaluators_want_a_known_name():
    for field, words in [
        ("evaluators.quality.name=generativ", "unknown config.evaluators.quality.name"),
        ("evaluators.quality.samples=3", "unknown field config.evaluators.quality.samples"),
        ("evaluators.a.b.name=likelihood", "unknown field config.evaluators.a.b"),
    ]:
        with pytest.raises(ValueError, match=words):
            config.resolve(settings(), [field])
