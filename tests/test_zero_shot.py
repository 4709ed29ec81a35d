"""Likelihood of other texts: the row against sums by hand, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import evaluate, parallel
from diffusion_lm.data import text, tokenizers
from diffusion_lm.evaluators import zero_shot
from diffusion_lm.objectives import md4

BYTES = tokenizers.load(name="bytes")
NATS = np.where(np.arange(257) == BYTES.end, 0.5, 0.01 * np.arange(257))  # of each token
OWN = text.cut(np.zeros(8, np.int32), 1, BYTES, 4)
DATA = text.TextData(257, 4, BYTES, {"train": OWN, "valid": OWN, "test": OWN})


def objective(exact):
    """Tokens cost what NATS says, wherever they are."""

    def nll(params, batch, key):
        return jnp.asarray(NATS, jnp.float32)[batch["x"]].sum(1)

    return toy.objective(md4, toy.exact_network)._replace(nll=nll, exact=exact)


def row_of(path, exact=True, **options):
    scored, mesh = objective(exact), parallel.make_mesh()
    evaluator = zero_shot.make(
        objective=scored, data=DATA, path=str(path), batch_size=8, draws=2, **options
    )
    step = evaluate.make_eval_step(scored, mesh)
    return evaluator(evaluate.Run(DATA, scored, {"network": {}}, mesh, 0, step))


@pytest.fixture
def ptb(tmp_path):
    path = tmp_path / "ptb.test.txt"
    path.write_text("a <unk>\nbc\n")  # a ?|bc|: 4 + 3 tokens
    return path


def test_perplexity_is_that_of_the_detokenized_text(ptb):
    row = row_of(ptb, dataset="ptb", protocol="sedd")
    nats = sum(NATS[t] for t in (*b"a ?", BYTES.end))  # bc| is left over
    assert row["perplexity"] == pytest.approx(math.exp(nats / 4), rel=1e-5)
    assert row["bits_per_char"] == pytest.approx(nats / math.log(2) / 3, rel=1e-5)
    facts = row["protocol"]
    assert (facts["dataset"], facts["name"], facts["detokenizer"]) == ("ptb", "sedd", "ptb")
    assert facts["windows"] == 1 and facts["context"] == 4 and facts["wrap"] == "none"


def test_ends_around_windows_are_counted_but_for_one_that_a_model_begins_with(ptb):
    inner = [*b"a ?", BYTES.end, *b"bc"]  # three windows of two
    nats = sum(NATS[t] for t in inner)
    bound = row_of(ptb, exact=False, dataset="ptb", protocol="mdlm")
    assert bound["nats_per_token"] == pytest.approx((nats + 6 * 0.5) / 12, rel=1e-5)
    exact = row_of(ptb, exact=True, dataset="ptb", protocol="mdlm")
    assert exact["nats_per_token"] == pytest.approx((nats + 3 * 0.5) / 9, rel=1e-5)
    assert (bound["kind"], exact["kind"]) == ("upper bound", "exact")
    assert exact["protocol"] == bound["protocol"]  # so that the papers' table can be made
    assert exact["protocol"]["context"] == 4 and exact["protocol"]["stride"] == 2
    assert (exact["given_tokens"], bound["given_tokens"]) == (1, 0)


def test_empty_documents_of_a_text_are_none(tmp_path):
    """As in training: no end token of theirs shifts the windows."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "abc"}\n{"text": ""}\n{"text": "def"}\n')
    row = row_of(path, dataset="text", protocol="joined")
    nats = sum(NATS[t] for t in (*b"abc", BYTES.end, *b"def", BYTES.end))
    assert row["nats_per_token"] == pytest.approx(nats / 8, rel=1e-5)


def test_mistakes_are_named_when_the_config_is_built(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset 'lambada' wants a file"):
        row_of(tmp_path / "no.jsonl", dataset="lambada")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        zero_shot.make(objective=objective(True), data=DATA, path=str(tmp_path), draws=0)
    with pytest.raises(ValueError, match="needs a model of text"):
        zero_shot.make(objective=None, data=DATA._replace(shape=(1, 4, 1)), path="x")
