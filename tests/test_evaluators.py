"""Evaluators: likelihood to a target error, and exact likelihood under an order."""

import functools
import itertools
import math
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import evaluate, evaluators, keys, parallel, schedules
from diffusion_lm.evaluators import likelihood, ordered
from diffusion_lm.objectives import ar, md4

WRONG = np.asarray(jax.nn.log_softmax(np.random.default_rng(2).normal(size=toy.DENOISER.shape)))
PARAMS = {"network": {}}
ORDERED = functools.partial(ordered.make, data=SimpleNamespace(of_sources={}))
LIKELY = functools.partial(likelihood.make, objective=toy.objective(md4, toy.exact_network))
T_OF = [float(schedules.time_of(schedules.cosine(), jnp.float32(n / toy.L))) for n in range(4)]


def network(*, inputs, outputs, causal=False, time_input=False):
    """A wrong denoiser, sharper with time and label where it is given them."""
    table = jnp.asarray(WRONG, jnp.float32)

    def trunk(params, tokens, t=None, keys=None, label=None):
        logits = table[toy.index(tokens)]
        logits = logits if t is None else logits * (1 + t)[:, None, None]
        return logits if label is None else logits * (1 + label)[:, None, None]

    return toy.exact_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)


def log_mu(z, sharper=1.0):
    """The same in numpy: [L, V]."""
    logits = WRONG[toy.index(np.asarray(z))] * sharper
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def by_hand(x, order, with_time, label):
    """-log p(x), one token at a time."""
    z, nats = np.full(toy.L, toy.MASK), 0.0
    for step in range(toy.L):
        sharper = (1 + T_OF[toy.L - step] if with_time else 1) * (1 + label)
        log_p = log_mu(z, sharper)
        p = np.sort(np.exp(log_p), axis=1)
        sure = {
            "left_to_right": -np.arange(toy.L),
            "confidence": p[:, -1],
            "margin": p[:, -1] - p[:, -2],
            "entropy": (np.exp(log_p) * log_p).sum(1),
        }[order]
        at = max((n for n in range(toy.L) if z[n] == toy.MASK), key=lambda n: sure[n])
        nats -= log_p[at, x[at]]
        z[at] = x[at]
    return nats


def all_sequences(**more):
    return keys.number({"x": jnp.asarray(toy.X, jnp.int32), **more})


@pytest.mark.parametrize("order", ordered.ORDERS)
def test_every_order_of_the_exact_denoiser_gives_the_nll(order):
    score = ordered.nats_in_order(toy.objective(md4, toy.exact_network), order)
    nats = jax.jit(score)({"network": {"unused": jnp.zeros(1)}}, all_sequences(), None)
    np.testing.assert_allclose(nats, -np.log(toy.P_X), atol=2e-5)


@pytest.mark.parametrize("with_time,labels", [(False, False), (True, True)])
@pytest.mark.parametrize("order", ordered.ORDERS)
def test_order_of_a_wrong_denoiser(order, with_time, labels):
    """Each sequence as summed by hand, with the time that belongs to the number of masks; and the
    probabilities of all 27 sum to 1."""
    label = np.arange(len(toy.X)) % 2 if labels else np.zeros(len(toy.X), int)
    objective = md4.make(
        network=network,
        vocab_size=toy.V,
        length=toy.L,
        schedule=schedules.cosine(),
        time_input=with_time,
        classes=2 if labels else 0,
    )
    score = jax.jit(ordered.nats_in_order(objective, order))
    batch = all_sequences(**({"label": jnp.asarray(label)} if labels else {}))
    want = [by_hand(x, order, with_time, k) for x, k in zip(toy.X, label, strict=True)]
    np.testing.assert_allclose(score(PARAMS, batch, None), want, rtol=1e-4)
    for k in (0, 1) if labels else (0,):
        same = {"label": jnp.full(len(toy.X), k)} if labels else {}
        assert abs(np.exp(-score(PARAMS, all_sequences(**same), None)).sum() - 1) < 1e-5


class Words(NamedTuple):
    """A tokenizer, as far as evaluators look."""

    name: str = "toy"
    fingerprint: str = "0"
    token_chars: np.ndarray = np.array([1, 2, 0])
    token_bytes: np.ndarray = np.array([2, 3, 0])


class Windows(NamedTuple):
    tokens: np.ndarray
    fingerprint: str = "1"


class Data(NamedTuple):
    """All 27 sequences, `copies` times, in batches that are filled up with rows of zeros."""

    copies: int = 1
    length: int = toy.L
    vocab_size: int = toy.V
    tokenizer: Words = Words()
    shape: tuple[int, ...] | None = None
    protocol: dict = {"counted": "every token"}

    def windows(self, split):
        return Windows(np.tile(toy.X, (self.copies, 1)).astype(np.int32))

    def scored(self, split, number):
        return number * self.length

    def evaluation_batches(self, split, *, batch_size, process_index, process_count):
        x = self.windows(split).tokens
        for start in range(0, len(x), batch_size):
            part = x[start : start + batch_size]
            fill = batch_size - len(part)
            weight = np.r_[np.ones(len(part)), np.zeros(fill)].astype(np.float32)
            yield {"x": np.pad(part, ((0, fill), (0, 0))), "weight": weight}


def row_of(evaluator, objective, copies=1):
    """One row, evaluated on eight devices, and its line for people."""
    mesh = parallel.make_mesh()
    step = evaluate.make_eval_step(objective, mesh)
    run = evaluate.Run(Data(copies), objective, PARAMS, mesh, 0, step)
    row = {"step": 0, "evaluator": "valid"} | evaluator(run)
    return row, evaluate.describe(row)


@pytest.mark.parametrize("number", [0, 13])
def test_row_of_an_order(number):
    objective = toy.objective(md4, network)
    evaluator = ORDERED(objective=objective, order="margin", batch_size=8, max_windows=number)
    row, line = row_of(evaluator, objective)
    x = toy.X[: number or 27]
    nats = sum(by_hand(sequence, "margin", False, 0) for sequence in x)
    assert row["protocol"]["windows"] == len(x) and row["calls"] == -(-len(x) // 8) * toy.L
    assert row["kind"] == "exact under the order" and row["order"] == "margin"
    np.testing.assert_allclose(row["nats_per_token"] * 3 * len(x), nats, rtol=1e-5)
    np.testing.assert_allclose(row["bits_per_token"] * math.log(2), row["nats_per_token"])
    chars = Words().token_chars[x].sum()
    np.testing.assert_allclose(row["bits_per_char"] * chars * math.log(2), nats, rtol=1e-5)
    size = Words().token_bytes[x].sum()
    np.testing.assert_allclose(row["bits_per_byte"] * size * math.log(2), nats, rtol=1e-5)
    np.testing.assert_allclose(row["perplexity"], math.exp(nats / x.size), rtol=1e-5)
    assert row["protocol"] == {
        "split": "valid",
        "windows": len(x),
        "context": toy.L,
        "stride": toy.L,
        "counted": "every token",
        "tokenizer": "toy-3-0",
        "data": "1",
    }
    assert f"exact under the order margin, {row['calls']} calls" in line


def test_images_report_bits_per_dimension():
    class Run(NamedTuple):
        data: Data = Data(shape=(1, toy.L, 1))

    row = evaluators.row(Run(), "valid", 9, 9 * toy.L * math.log(2) / 2)
    assert row["bits_per_dim"] == pytest.approx(0.5) and "bits_per_char" not in row
    line = evaluate.describe(row | {"step": 1, "evaluator": "valid", "kind": "exact"})
    assert "0.5000 bits/dim" in line


def noisy(spread):
    """An objective whose nll is 2 nats plus noise."""

    def nll(params, batch, key):
        keys_B = keys.rows(key, batch["row"])
        return 2 + spread * jax.vmap(jax.random.normal)(keys_B)

    return toy.objective(md4, network)._replace(nll=nll)


def test_draws_until_the_target_error():
    """At 0.5 nats a window of 3 tokens, 270 windows: the error after k draws is about
    0.5 / 3 / sqrt(270 k), 0.005 after 4.1."""
    objective = noisy(0.5)
    options = {"draws": 20, "batch_size": 8}
    row, line = row_of(LIKELY(target_error=0.005, **options), objective, copies=10)
    assert 3 <= row["draws"] <= 6 and row["standard_error"] <= 0.005
    assert row["target_reached"] is True and "not reached" not in line
    assert abs(row["nats_per_token"] - 2 / 3) < 4 * row["standard_error"]
    fixed = LIKELY(draws=row["draws"], batch_size=8)
    again, _ = row_of(fixed, objective, copies=10)
    assert again == {k: v for k, v in row.items() if k != "target_reached"}


def test_an_unreachable_target_is_no_error():
    row, line = row_of(LIKELY(target_error=1e-6, draws=4, batch_size=8), noisy(0.5))
    assert row["draws"] == 4 and row["target_reached"] is False
    assert row["standard_error"] > 0.005 and "4 draws, target not reached" in line
    row, line = row_of(LIKELY(target_error=1.0, draws=1, batch_size=8), noisy(0.5))
    assert row["standard_error"] is None and row["target_reached"] is False


@pytest.mark.parametrize("batch_size,draws", [(8, 4), (16, 6), (32, 11)])
def test_an_error_of_few_degrees_of_freedom_stops_nothing(batch_size, draws):
    """4, 2 or 1 batches: drawing goes on until 10 differences stand behind the error."""
    evaluator = LIKELY(target_error=10.0, draws=50, batch_size=batch_size)
    assert row_of(evaluator, noisy(0.5))[0]["draws"] == draws


def test_an_exact_score_has_no_error_to_wait_for():
    objective = noisy(0.0)._replace(exact=True)
    row, line = row_of(LIKELY(target_error=1e-6, batch_size=8), objective)
    assert row["draws"] == 1 and row["standard_error"] == 0 and row["target_reached"] is True
    assert row["kind"] == "exact" and "draws" not in line


BAD_OPTIONS = [
    (LIKELY, {"draws": 0}, "at least 1"),
    (LIKELY, {"batch_size": 3}, "even"),
    (LIKELY, {"target_error": -1.0}, "0 .none. or more"),
    (LIKELY, {"target_error": math.nan}, "0 .none. or more"),
    (ORDERED, {"order": "random"}, "choices: left_to_right, confidence"),
]
BAD_OPTIONS += [
    (make, {name: -1}, name)
    for make, name in itertools.product((LIKELY, ORDERED), ("batch_size", "max_windows"))
]


@pytest.mark.parametrize("make,options,message", BAD_OPTIONS)
def test_options_that_do_not_fit_are_refused(make, options, message):
    if make is ORDERED:
        options = {"objective": toy.objective(md4, network), **options}
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_orders_are_for_masked_diffusion():
    with pytest.raises(ValueError, match="not this autoregressive model"):
        ORDERED(objective=toy.objective(ar, toy.exact_network))
    with pytest.raises(ValueError, match="not for pairs"):
        pairs = SimpleNamespace(of_sources={"source_length": 9})
        ordered.make(data=pairs, objective=toy.objective(md4, network))
