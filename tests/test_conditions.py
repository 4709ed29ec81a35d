"""Class conditions and classifier-free guidance, on two classes with laws of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_samplers import FREE, PARAMS, UNKNOWN, assert_law

from diffusion_lm import keys, sample
from diffusion_lm.objectives import genmd4, md4, sedd
from diffusion_lm.samplers import confidence, first_hitting

NUM = 100_000
P = np.stack([toy.P_X, np.random.default_rng(1).dirichlet(np.full(len(toy.X), 0.5))])  # [2, 27]
P = np.concatenate([P, P.mean(0, keepdims=True)])  # the last row: label unknown


def table(p):
    """log p(x^n | z) for all z: [64, L, V]."""
    fits = np.all((toy.Z[:, None] == toy.MASK) | (toy.X == toy.Z[:, None]), axis=-1) * p
    is_v = toy.X[..., None] == np.arange(toy.V)
    joint = np.einsum("zx,xnv->znv", fits, is_v)
    return np.log(joint / joint.sum(-1, keepdims=True) + 1e-30)


DENOISER = np.stack([table(p) for p in P])


def network(*, inputs, outputs, causal=False, time_input=False):
    """Knows the denoiser of each class; keeps the labels it was given."""
    known = jnp.asarray(DENOISER, jnp.float32)

    def trunk(params, tokens, t=None, keys=None, label=None):
        if label is not None:
            network.labels = label
        label = jnp.full(tokens.shape[0], 2) if label is None else label
        return known[label, toy.index(tokens)]

    exact = toy.exact_network(inputs=inputs, outputs=outputs)
    return exact._replace(trunk=trunk)


@pytest.fixture(scope="module")
def model():
    return toy.objective(md4, network, classes=2)


def draw(sampler, cond):
    keys_B = keys.rows(jax.random.key(0), jnp.arange(NUM))
    out = jax.jit(sampler.sample)(PARAMS, keys_B, UNKNOWN[:NUM], FREE[:NUM], cond)
    return np.asarray(out.tokens), int(out.calls)


@pytest.mark.parametrize("label", [None, 0, 1])
def test_a_label_gives_the_law_of_its_class(model, label):
    cond = None if label is None else {"label": jnp.full(NUM, label)}
    tokens, calls = draw(first_hitting.make(objective=model), cond)
    assert_law(tokens, P[2 if label is None else label], toy.X)
    assert calls == toy.L


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_sharpens_by_the_ratio(model, guidance):
    """Of one step: positions are independent, each proportional to p(x | label)^g p(x)^(1 - g)."""
    cond = {"label": jnp.ones(NUM, int), "guidance": jnp.float32(guidance)}
    tokens, calls = draw(confidence.make(objective=model, num_steps=1, order="random"), cond)
    log_p = guidance * DENOISER[1, -1] + (1 - guidance) * DENOISER[2, -1]
    p = np.exp(log_p) / np.exp(log_p).sum(-1, keepdims=True)
    law = np.prod([p[n, toy.X[:, n]] for n in range(toy.L)], axis=0)
    assert_law(tokens, law, toy.X)
    assert calls == 2  # with the label and without


@pytest.mark.parametrize("module", [md4, genmd4, sedd])
def test_training_hides_one_label_in_ten(module):
    objective = toy.objective(module, network, classes=2)
    params = objective.init(jax.random.key(0))
    size = 4000
    batch = keys.number({"x": jnp.zeros((size, toy.L), int), "label": jnp.arange(size) % 2})
    objective.loss(params, batch, jax.random.key(0), train=True)
    seen = np.asarray(network.labels)
    hidden = seen == 2
    assert abs(hidden.mean() - 0.1) < 4 * np.sqrt(0.09 / size)
    np.testing.assert_array_equal(seen[~hidden], np.asarray(batch["label"])[~hidden])
    objective.nll(params, batch, jax.random.key(0))
    np.testing.assert_array_equal(network.labels, batch["label"])


@pytest.mark.parametrize(
    "options,words",
    [
        ({"label": 2}, "0 to 1"),
        ({"guidance": 2.0}, "needs a --label"),
        ({"prompt": "ab", "label": 0}, "for text"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(model, options, words):
    class Data:
        shape, classes, length, vocab_size = (3, 1, 1), 2, toy.L, toy.V

    class Parts:
        data, objective = Data, model

    with pytest.raises(ValueError, match=words):
        sample.samples(Parts, PARAMS, None, num=1, seed=0, **options)
