"""A network taken from another run, and a denoiser made of an autoregressive one."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runs import assert_same, rows, state_of, write_config

from diffusion_lm import graft, keys, main, schedules
from diffusion_lm.networks import llama
from diffusion_lm.objectives import md4

SIZES = {"layers": 2, "width": 16, "heads": 2, "hidden": 24}
V, L, START = 7, 5, 6
X = np.random.default_rng(0).integers(0, V, (4, L)).astype(np.int32)


def denoiser(**options):
    return llama.make(
        inputs=V + 1, outputs=V, **SIZES, shifted=True, anneal_steps=10, start=START, **options
    )


def parameters():
    """Of the autoregressive network, and the same with a row for the mask."""
    causal = llama.make(inputs=V, outputs=V, causal=True, **SIZES)
    params = causal.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(jax.random.key(1), a.shape), params)
    new = graft.onto({"network": denoiser().init(jax.random.key(2))}, {"network": params})
    return causal, params, new["network"]


def at(step):
    keys_B = jax.random.split(jax.random.key(3), len(X))
    return None, keys_B, jnp.full(len(X), step)


def test_annealing_begins_at_the_autoregressive_model_and_ends_without_a_mask():
    causal, params, new = parameters()
    net = denoiser()
    begun = np.pad(X[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    wanted = causal.head(params, causal.trunk(params, begun))
    found = net.head(new, net.trunk(new, X, *at(0)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    whole = net.trunk(new, X)
    np.testing.assert_allclose(net.trunk(new, X, *at(10)), whole, atol=1e-5)
    assert np.abs(np.asarray(net.trunk(new, X, *at(5)) - whole)).max() > 1e-3
    assert np.abs(np.asarray(net.head(new, whole) - wanted)).max() > 1e-3
    assert net.anneals and not causal.anneals


def test_a_share_of_what_comes_after_is_seen_that_grows_with_the_steps():
    """By gradients: which outputs depend on the last token but one, which only later ones and those
    that are let through may."""
    _, _, new = parameters()
    net = llama.make(
        inputs=V + 1, outputs=V, **SIZES | {"layers": 1}, shifted=True, anneal_steps=10, start=START
    )
    new = new | {"blocks": jax.tree.map(lambda a: a[:1], new["blocks"])}
    x, other = np.tile(X[:1], (400, 1)), np.tile(X[:1], (400, 1))
    other[:, L - 1] = (other[:, L - 1] + 1) % V  # no output is read off it: it is only looked at
    shares = []
    for step in (0, 3, 7, 10):
        given = None, jax.random.split(jax.random.key(4), 400), jnp.full(400, step)
        a, b = (np.asarray(net.trunk(new, tokens, *given)) for tokens in (x, other))
        shares.append((np.abs(a - b).max(-1) > 1e-6).mean())
    np.testing.assert_allclose(shares, [0, 0.3, 0.7, 1], atol=0.05)


def test_further_rows_are_the_mean_and_what_does_not_fit_is_named():
    _, params, new = parameters()
    np.testing.assert_array_equal(new["embedding"][:V], params["embedding"])
    np.testing.assert_allclose(new["embedding"][V], params["embedding"].mean(0), rtol=1e-6)
    mine = {"network": denoiser().init(jax.random.key(0))}
    narrow = llama.make(inputs=V, outputs=V, causal=True, **SIZES | {"hidden": 12})
    with pytest.raises(ValueError, match="3 arrays .*'down'.* has .*12, 16.* there and .*24, 16"):
        graft.onto(mine, {"network": narrow.init(jax.random.key(0))})
    with pytest.raises(ValueError, match="'norm1'.* is not there"):
        graft.onto(mine, {"network": {"embedding": params["embedding"]}})


def test_the_loss_anneals_and_the_bound_does_not():
    _, _, new = parameters()
    objective = md4.make(
        network=functools.partial(llama.make, **SIZES, shifted=True, anneal_steps=10, start=START),
        vocab_size=V,
        length=L,
        schedule=schedules.linear(),
    )

    def loss(step, train=True):
        batch = keys.number({"x": jnp.asarray(X)}) | {"step": jnp.full(len(X), step)}
        return objective.loss({"network": new}, batch, jax.random.key(0), train=train).loss

    assert np.abs(np.asarray(loss(0) - loss(10))).max() > 1e-3
    np.testing.assert_allclose(loss(10), loss(99), rtol=1e-6)
    np.testing.assert_allclose(loss(0, train=False), loss(10, train=False), rtol=1e-6)


def test_causal_networks_have_nothing_to_anneal():
    with pytest.raises(ValueError, match="autoregressive itself"):
        llama.make(inputs=V, outputs=V, causal=True, shifted=True)


def test_from_an_autoregressive_run_to_a_denoiser(tmp_path, text_file, capsys):
    """From the command line; the new run resumes and is evaluated without the old one."""
    network = {"name": "llama", **SIZES}
    path = write_config(tmp_path, text_file, network=network, objective={"name": "ar"},
                        sampler={"name": "autoregressive"})  # fmt: skip
    old, new = tmp_path / "old", tmp_path / "new"
    assert main.main([f"--config={path}", f"--workdir={old}"]) == 0
    root = state_of(path, old).ema["network"]
    path = write_config(
        tmp_path,
        text_file,
        network=network | {"shifted": True, "anneal_steps": 2},
        **{"train.start": str(old), "train.steps": 0},
    )
    argv = [f"--config={path}", f"--workdir={new}"]
    assert main.main(argv) == 0
    state = state_of(path, new)
    assert_same(state.params["network"]["blocks"], root["blocks"])
    assert_same(state.ema, state.params)
    first = json.loads((new / "metrics.jsonl").read_text().splitlines()[-1])
    shutil.move(old, tmp_path / "moved")
    assert main.main([*argv, "--config.train.steps=4"]) == 0
    last = [row for row in rows(new) if row["split"] == "valid"][-1]
    assert last["step"] == 4 and last["nats_per_token"] != first["nats_per_token"]
    assert main.main([f"--workdir={new}", "--mode=eval"]) == 0
    kept = [row["step"] for row in rows(new) if row["split"] == "valid"]
    assert kept == [0, 4]  # what was measured before it was trained stays
    capsys.readouterr()
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'other'}"]) == 2
    assert (
        "config.train.start (random, bigram or a run's folder): no run in"
        in capsys.readouterr().err
    )
    other = write_config(
        tmp_path,
        text_file,
        network=network | {"rotary_base": 500.0},
        **{"train.start": str(tmp_path / "moved")},
    )
    assert main.main([f"--config={other}", f"--workdir={tmp_path / 'fourth'}"]) == 2
    assert "another network: rotary_base 10000.0 there and 500.0 here" in capsys.readouterr().err
    other = write_config(
        tmp_path,
        text_file,
        network=network,
        **{"train.start": str(tmp_path / "moved"), "data.tokenizer": "characters"},
    )
    assert main.main([f"--config={other}", f"--workdir={tmp_path / 'third'}"]) == 2
    assert "has other tokens, bytes of 257, here characters of" in capsys.readouterr().err
