"""Runs of pairs from the command line, the candidates of a source and the choice among them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import build, config, main, translate
from diffusion_lm.types import Objective, Sampler, Samples

NETWORK = {"name": "seq2seq", "layers": 1, "width": 16, "heads": 2, "hidden": 16}
TOY = {"name": "pairs", "source": "reverse", "tokenizer": "characters", "symbols": 5, "length": 9}


def write_config(folder, name, data, objective, sampler, **sections):
    made = {
        "data": data,
        "network": NETWORK | {"embedding_width": 8 * (objective == "difformer")},
        "objective": {"name": objective},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "warmup": 0},
        "sampler": {"name": sampler},
        "evaluators": {"valid": {"name": "translation", "max_pairs": 6, "batch_size": 8}},
        "train": {"steps": 2, "batch_size": 8, "log_every": 1, "eval_every": 2},
    } | sections
    path = pathlib.Path(folder) / f"{name}.json"
    path.write_text(json.dumps(made))
    return str(path)


def rows(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (pathlib.Path(workdir) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def ar_run(folder):
    path = write_config(
        folder,
        "ar",
        TOY | {"pairs": 100},
        "ar",
        "autoregressive",
        evaluators={"valid": {"name": "likelihood", "batch_size": 8}},
    )
    assert main.main([f"--config={path}", f"--workdir={folder / 'ar'}"]) == 0
    return str(folder / "ar")


@pytest.fixture(scope="module")
def rdm_run(folder, ar_run):
    decoding = {"length_beam": 2, "noise_beam": 2, "choice": "ar", "reranker": ar_run}
    path = write_config(folder, "rdm", TOY | {"pairs": 100}, "rdm", "routing", decoding=decoding)
    assert main.main([f"--config={path}", f"--workdir={folder / 'rdm'}"]) == 0
    return str(folder / "rdm")


def test_a_run_of_pairs_writes_its_protocol_and_samples(rdm_run, ar_run):
    row = rows(rdm_run)[-1]
    assert row["kind"] == "translation" and row["pairs"] == 6
    wanted = {"candidates": 4, "length_beam": 2, "noise_beam": 2, "choice": "ar"}
    wanted |= {"reranker": ar_run, "distillation": "none", "sampler": "routing"}
    assert wanted == {name: row[name] for name in wanted}
    assert 8 < row["calls"] <= 16 + 1  # routing's steps, less those with nothing to do; reranker
    assert row["self_bleu"] is not None and row["bleu_signature"].startswith("nrefs:1|case:mixed")
    texts = rows(rdm_run, "samples.jsonl")
    assert len(texts) == 2 and set(texts[0]) >= {"source", "text", "reference", "calls"}
    assert texts[0]["reference"] == texts[0]["source"][::-1]


def test_likelihood_of_targets_counts_their_own_tokens(ar_run):
    row = [r for r in rows(ar_run) if r["split"] == "valid"][-1]
    assert row["kind"] == "exact"
    # 8 letters and an end token each; letters alone are characters
    assert row["bits_per_char"] == pytest.approx(row["bits_per_token"] * 9 / 8, rel=1e-4)
    assert 0 < row["nats_per_token"] < 3


def test_sampling_from_the_command_line(rdm_run, capsys):
    argv = [f"--workdir={rdm_run}", "--mode=sample", "--json", "--seed=3"]
    assert main.main([*argv, "--prompt=abcdeabc\nedcbaedc", "--num_samples=2"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in made] == ["abcdeabc"] * 2 + ["edcbaedc"] * 2
    assert all(len(row["candidates"]) == 4 and row["text"] in row["candidates"] for row in made)
    assert main.main([*argv, "--prompt=abcdeabc"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == made[0]["candidates"]


@pytest.mark.parametrize(
    "flags,message",
    [
        ([], "wants --prompt=SOURCE"),
        (["--prompt=abz"], "alphabet"),
        (["--prompt=abcdeabcd"], "a source of 9 tokens, wanted 1..8"),
        (["--prompt=ab", "--length=4"], "--length is not for a model of pairs"),
        (["--prompt=ab", "--html=new.html"], "--html is not for a model of pairs"),
        (["--prompt=ab", "--num_samples=0"], "at least 1"),
        (["--prompt=ab", "--config.decoding.choice=best"], "choices: model, mbr, ar, energy"),
        (["--prompt=ab", "--config.decoding.choice=model"], "goes with decoding.choice"),
        (["--prompt=ab", "--config.decoding.reranker=nowhere"], "no run in 'nowhere'"),
        (["--prompt=ab", "--config.decoding.length_beam=0"], "at least 1"),
        (["--prompt=ab", "--config.decoding.lenght_beam=2"], "did you mean"),
    ],
)
def test_bad_input_in_one_line(rdm_run, capsys, flags, message):
    assert main.main([f"--workdir={rdm_run}", "--mode=sample", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_does_not_go_together(folder, rdm_run, ar_run, text_file, capsys):
    """Networks without sources, objectives without targets, evaluators without pairs."""
    toy, text = TOY | {"pairs": 100}, {"name": "text", "source": "files", "path": text_file}
    text |= {"tokenizer": "bytes", "length": 16}
    plain = {"name": "transformer", "layers": 1, "width": 16, "heads": 2}
    cases = [
        (toy, "rdm", "routing", {"network": plain}, "takes no source; for pairs: 'seq2seq'"),
        (toy, "md4", "ancestral", {}, "was given no source"),
        (text, "rdm", "routing", {}, "is for pairs"),
        (text, "rdm", "routing", {"network": plain}, "needs pairs"),
        (toy, "ar", "autoregressive", {"decoding": {"length_beam": 2}}, "ends its targets itself"),
        (toy, "rdm", "ancestral", {"decoding": {"noise_beam": 2}}, "scores what it"),
        (toy, "rdm", "routing", {"decoding": {"length_beam": 9}}, "targets have 1 to 8 tokens"),
        (toy, "rdm", "routing", {"decoding": {"choice": "ar", "reranker": rdm_run}}, "no autoreg"),
        (TOY | {"pairs": 90}, "rdm", "routing", {"decoding": {"choice": "ar", "reranker": ar_run}},
         "another text"),
    ]  # fmt: skip
    for data, objective, sampler, sections, message in cases:
        path = write_config(folder, "bad", data, objective, sampler, **sections)
        assert main.main([f"--config={path}", f"--workdir={folder / 'bad'}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_trained_tokenizer_stays_with_the_run(folder, capsys):
    """tokenizer.json is written when the run starts, and read from there ever after."""
    texts = folder / "texts"
    texts.mkdir()
    for split, count in (("train", 60), ("valid", 8), ("test", 8)):
        for side in ("de", "en"):
            lines = [f"{split} {side} line number {i}" for i in range(count)]
            (texts / f"{split}.{side}").write_text("\n".join(lines) + "\n")
    data = {"name": "pairs", "source": "files", "path": str(texts), "length": 24}
    data |= {"source_suffix": "de", "target_suffix": "en", "vocab_size": 280, "buckets": 2}
    likelihood = {"valid": {"name": "likelihood", "batch_size": 8}}
    path = write_config(folder, "bpe", data, "ar", "autoregressive", evaluators=likelihood)
    workdir = folder / "bpe"
    assert main.main([f"--config={path}", f"--workdir={workdir}"]) == 0
    before = (workdir / "tokenizer.json").read_text()
    assert main.main([f"--workdir={workdir}", "--mode=sample", "--prompt=valid de line"]) == 0
    more = [f"--config={path}", f"--workdir={workdir}", "--config.train.steps=3"]
    assert main.main(more) == 0 and (workdir / "tokenizer.json").read_text() == before
    (workdir / "tokenizer.json").write_text("{}")
    capsys.readouterr()
    assert main.main([f"--workdir={workdir}", "--mode=eval"]) == 2
    assert "is no tokenizer of pairs" in capsys.readouterr().err


class Data:
    """Targets are written in digits; 9 ends them."""

    length, source_length = 5, 3

    class tokenizer:
        end = 9

    @staticmethod
    def text_of(tokens):
        tokens = list(tokens)
        return "".join(str(t) for t in tokens[: tokens.index(9)])


def stub(log_lengths, score):
    """An objective of given lengths, and a sampler that writes its row's length, noise and source.

    Targets are [source's first token, a digit of the row's key, ...] of the wanted length.
    """

    def sample(params, keys_B, prompt, free, cond):
        digit = jax.vmap(lambda key: jax.random.randint(key, (), 0, 8))(keys_B)
        tokens = jnp.where(free, digit[:, None], prompt).at[:, 0].set(cond["src"][:, 0])
        return Samples(tokens, jnp.int32(7), score=score(tokens))

    def lengths(params, src):
        return jnp.tile(jnp.log(jnp.array(log_lengths)), (len(src), 1))

    objective = Objective(None, None, None, None, None, (), lengths=lengths)
    return objective, Sampler(sample)


def translated(choice="model", score=lambda x: x.sum(1) * 1.0, reranker=None, batch_size=2, n=5):
    objective, sampler = stub([0.0, 0.1, 0.5, 0.3, 0.1], score)
    options = translate.Settings(2, 3, choice, None)
    run = translate.translator(objective, sampler, Data, options, reranker, {"sampler": "stub"})
    src = np.tile(np.arange(n)[:, None], (1, 3))
    return list(run(None, src, seed=0, batch_size=batch_size))


def test_candidates_are_lengths_times_noises():
    made = translated()
    assert len(made) == 5 and made[0].calls == 7
    assert made[0].protocol == {
        "candidates": 6, "length_beam": 2, "noise_beam": 3, "choice": "model", "reranker": None,
        "sampler": "stub",
    }  # fmt: skip
    for index, one in enumerate(made):
        assert [len(text) for text in one.candidates] == [2, 2, 2, 3, 3, 3]
        assert all(text[0] == str(index) for text in one.candidates)
    assert len({text for one in made for text in one.candidates}) > 12  # noises differ
    for size in (1, 5):  # what a source gets does not depend on its batch
        assert [m.candidates for m in translated(batch_size=size)] == [m.candidates for m in made]


def test_the_model_chooses_by_its_mean_over_the_tokens_that_it_scored():
    """-1 for two tokens, -1.45 for three: the three are likelier a token. The end, whose place is
    given, is none of them: over three and four the two would win."""

    def score(x):
        return jnp.where((x != 9).sum(1) == 2, -1.0, -1.45)

    assert [len(one.text) for one in translated(score=score)] == [3] * 5


def test_choices():
    """By the model's mean a token with the end; by the reranker; by mutual BLEU; by energy."""
    texts, rng = ["aa bb cc dd", "aa bb cc dd", "aa bb xx yy", "q"], np.random.default_rng(0)
    own, counts = np.array([-8.0, -9.0, -3.0, -2.0]), np.array([5, 5, 5, 2])
    assert translate.choose("model", texts, own, own, counts, rng) == 2  # -.6 a token, not -2
    others = np.array([-1.0, -20.0, -20.0, -20.0])
    assert translate.choose("ar", texts, own, others, counts, rng) == 0
    assert translate.choose("mbr", texts, own, others, counts, rng) in (0, 1)
    assert translate.choose("mbr", ["one"], own[:1], own[:1], counts[:1], rng) == 0
    others = own + np.log([0.1, 0.2, 0.3, 0.4])  # weights p_ar / p_model
    drawn = [translate.choose("energy", texts, own, others, counts, rng) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.1, 0.2, 0.3, 0.4], atol=0.03)


def test_the_reranker_sees_the_source_of_each_candidate():
    def token_nll(params, batch):  # small where the second digit is the source's
        wrong = batch["x"][:, 1] != params + batch["src"][:, 0]
        return jnp.where(wrong, 5.0, 0.1)[:, None] * (batch["x"] != 9)

    judge = Objective(None, None, None, None, None, (), exact=True, token_nll=token_nll)
    made = translated("ar", reranker=translate.Reranker(judge, jnp.int32(0)), n=8)
    hits = 0
    for index, one in enumerate(made):
        right = [text for text in one.candidates if text[1] == str(index)]
        if right:
            hits += 1
            assert one.text in right
        assert one.calls == 8
    assert hits > 2


def test_setup_reads_no_tokenizer_without_a_folder(folder):
    resolved = config.resolve(
        config.load(write_config(folder, "toy", TOY | {"pairs": 50}, "rdm", "routing")), []
    )
    assert resolved.decoding.choice == "model"
    assert build.setup(resolved).parts.data.files == {}
