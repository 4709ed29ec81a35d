"""The networks for images: shapes, a uniform start, rows apart, conditions, layout, refusals."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import keys, optim, parallel
from diffusion_lm.networks import pixels, transformer, unet, uvit
from diffusion_lm.types import Network

SHAPE, CLASSES = (6, 6, 2), 3
MAKE = {
    "unet": partial(unet.make, blocks=1, width=8, heads=2),
    "uvit": partial(uvit.make, outer=1, outer_width=8, patch=2, layers=1, width=8, heads=2),
    "dit": partial(uvit.make, outer=0, outer_width=8, patch=2, layers=1, width=8, heads=2),
}
MAKE = {
    name: partial(make, inputs=6, outputs=5, shape=SHAPE, dropout_rate=0.2, condition_width=8)
    for name, make in MAKE.items()
}
MODULES = {"unet": unet, "uvit": uvit, "dit": uvit}


class Made(NamedTuple):
    network: Network
    fresh: dict  # parameters as they start
    moved: dict  # and away from there
    trunk: object  # jitted: (params, tokens, t, keys, label) -> h


@pytest.fixture(scope="module", params=MAKE)
def made(request):
    network = MAKE[request.param](time_input=True, classes=CLASSES)
    fresh = jax.jit(network.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(a.dtype), fresh)
    return Made(network, fresh, moved, jax.jit(network.trunk))


def inputs(seed=0):
    """Tokens, times, dropout keys and labels of three rows."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, 6, (3, 72)), jnp.int32)
    t, label = jnp.asarray(rng.random(3), jnp.float32), jnp.asarray([0, 1, 3])
    return tokens, t, keys.rows(jax.random.key(seed), jnp.arange(3)), label


def test_shapes_and_a_uniform_start(made):
    h = made.trunk(made.fresh, *inputs())
    assert h.shape[:2] == (3, 72)
    logits = made.network.head(made.fresh, h)
    assert logits.shape == (3, 72, 5) and logits.dtype == jnp.float32
    assert np.all(np.asarray(logits) == 0)
    assert np.abs(h).max() > 0.1  # so the head has something to learn from


def test_head_on_chosen_rows(made):
    h = made.trunk(made.moved, *inputs())
    whole = np.asarray(made.network.head(made.moved, h))
    assert np.ptp(whole) > 0.1
    row, place = np.array([0, 2, 2, 1]), np.array([71, 0, 5, 40])
    chosen = made.network.head(made.moved, h[row, place])
    np.testing.assert_allclose(chosen, whole[row, place], atol=1e-5)


def test_rows_and_their_dropout_stand_alone(made):
    """A row's output is a function of its own tokens, time, dropout key and label."""
    one, other = inputs(0), inputs(1)
    want = np.asarray(made.trunk(made.moved, *one))
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([b[:1], a[1:2], b[2:]]), one, other)
    got = np.asarray(made.trunk(made.moved, *mixed))
    np.testing.assert_allclose(got[1], want[1], atol=1e-4)
    assert np.abs(got[0] - want[0]).max() > 1e-2
    swapped = jax.tree.map(lambda a: a[::-1], one)
    np.testing.assert_allclose(made.trunk(made.moved, *swapped)[::-1], want, atol=1e-4)


@pytest.mark.parametrize("index", range(4), ids=["tokens", "time", "dropout", "label"])
def test_everything_reaches_every_place(made, index):
    one, other = list(inputs(0)), inputs(1)
    want = made.trunk(made.moved, *one)
    one[index] = other[index] if index < 3 else jnp.array([1, 2, 0])
    change = np.abs(made.trunk(made.moved, *one) - want).max(-1)
    assert np.all(change.max(1) > 1e-3)
    assert (change > 1e-6).mean() > 0.9


def test_one_pixel_is_seen_from_afar_and_most_where_it_is(made):
    """Tokens are in raster order on both sides, and the middle joins all of them."""
    tokens, t, dropout_keys, label = inputs()
    other = tokens.at[:, 2].set((tokens[:, 2] + 1) % 6)  # pixel (0, 1), channel 0

    def change(params):
        h = [made.trunk(params, x, t, dropout_keys, label) for x in (tokens, other)]
        return np.abs(h[0] - h[1]).reshape(3, *SHAPE, -1).mean((0, 3, 4))

    assert np.all(change(made.moved) > 1e-6)
    at_start = change(made.fresh)
    assert np.unravel_index(at_start.argmax(), SHAPE[:2])[0] < 2
    assert at_start[:3, :3].mean() > 4 * at_start[3:, 3:].mean()


def test_unknown_labels_and_leaving_conditions_out(made):
    t = jnp.array([0.1, 0.9])
    of = partial(pixels.condition_of, made.moved, t, size=2, width=8)
    np.testing.assert_array_equal(of(None), of(jnp.array([CLASSES, CLASSES])))
    assert np.abs(of(None) - of(jnp.array([0, 1]))).max() > 0.1


@pytest.mark.parametrize("name", MAKE)
def test_without_conditions_and_in_bfloat16(name):
    network = MAKE[name](dtype="bfloat16", remat=True)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert not {"condition", "label"} & set(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert not any("modulation" in parallel.name(p) for p, _ in leaves(params))
    tokens = jax.ShapeDtypeStruct((2, 72), jnp.int32)
    h = jax.eval_shape(network.trunk, params, tokens)
    assert h.dtype == jnp.bfloat16
    assert jax.eval_shape(network.head, params, h).dtype == jnp.float32


def leaves(params):
    return jax.tree_util.tree_leaves_with_path(params)


@pytest.mark.parametrize("name", MAKE)
def test_every_large_parameter_has_logical_axes(name):
    """As many as it has axes; Muon takes the matrices of the layers by them."""
    network = MAKE[name](time_input=True, classes=CLASSES)
    axes = MODULES[name].AXES
    params = jax.eval_shape(network.init, jax.random.key(0))
    for path, leaf in leaves(params):
        names = parallel.logical_axes(axes, path)
        if names is not None:
            assert len(names) == leaf.ndim, parallel.name(path)
        elif leaf.ndim > 1 and leaf.size > 128:
            assert parallel.name(path).startswith("condition/"), parallel.name(path)
    optimizer = optim.muon(steps=1, axes=axes)
    state = jax.eval_shape(optimizer.transform.init, params)
    jax.eval_shape(optimizer.transform.update, params, state, params)
    rows = optim.muon_dimensions(axes, params)
    if name != "dit":
        down = rows["down"]["conv1"]["kernel"]
        assert down.reduction_axis == (1, 2, 3) and down.output_axis == (4,)
    assert rows["enter"]["kernel"] is None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unet", {"shape": None}, "'unet' is for images, .* 'transformer'"),
        ("uvit", {"shape": None}, "'uvit' is for images"),
        ("unet", {"causal": True}, "'unet' is not causal"),
        ("uvit", {"causal": True}, "'uvit' is not causal"),
        ("unet", {"blocks": 0}, "network.blocks must be positive, got 0"),
        ("unet", {"width": 6}, "network.width must be a multiple of 4, got 6"),
        ("unet", {"heads": 3}, "multiple of 2 x heads"),
        ("uvit", {"outer_width": 10}, "network.outer_width must be a multiple of 4"),
        ("unet", {"dtype": "float16"}, "float32, bfloat16"),
        ("unet", {"dropout_rate": 1.0}, "dropout_rate"),
        ("uvit", {"outer": -1}, "network.outer must not be negative"),
        ("uvit", {"patch": 4}, "network.patch 4 does not divide images of 6 x 6"),
        ("uvit", {"layers": 0}, "network.layers must be positive"),
        ("uvit", {"width": 10}, "multiple of 2 x heads"),
    ],
)
def test_refusals(name, options, words):
    with pytest.raises(ValueError, match=words):
        MAKE[name](**options)


def test_the_transformer_takes_images_too():
    """With a shape its places differ; labels reach it, and the cache agrees with the trunk."""
    network = transformer.make(
        inputs=6, outputs=5, shape=(2, 2, 1), classes=2, causal=True, layers=1, width=8, heads=2
    )
    params = jax.jit(network.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype(a.dtype), params)
    tokens, label = jnp.ones((2, 4), int), jnp.array([0, 1])
    both = jax.jit(lambda p, x, y: network.head(p, network.trunk(p, x, None, None, y)))
    logits = both(params, tokens, label)
    assert np.abs(logits[:, 0] - logits[:, 1]).min() > 1e-4
    assert np.abs(logits[0] - logits[1]).max() > 1e-2
    cache, decode = network.cache(2, 4), jax.jit(network.decode)
    for at in range(4):
        got, cache = decode(params, cache, tokens[:, at], at, label)
        np.testing.assert_allclose(got, logits[:, at], atol=1e-5)
