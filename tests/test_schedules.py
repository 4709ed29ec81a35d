"""One numerical test over all schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import keys, processes, schedules

SCHEDULES = {
    "linear": schedules.linear(),
    "polynomial2": schedules.polynomial(power=2.0),
    "polynomial3": schedules.polynomial(power=3.0),
    "cosine": schedules.cosine(),
    "geometric": schedules.geometric(),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every
def test_ends_and_consistency(schedule):
    t = jnp.linspace(0, 1, 1001)
    alpha, mask = schedule.alpha(t), schedule.mask_prob(t)
    np.testing.assert_allclose(alpha + mask, 1, atol=2e-6)
    np.testing.assert_allclose([alpha[0], mask[-1]], [1 - 1e-4, 1], atol=1e-6)
    np.testing.assert_allclose(mask[0], 1e-4, rtol=1e-4)
    assert abs(float(alpha[-1])) < 1e-7
    assert np.all(np.diff(mask) >= 0)


@every
def test_dalpha_is_the_derivative(schedule):
    t = np.linspace(0.01, 0.99, 197)
    with jax.enable_x64(True):
        want = -np.asarray(jax.vmap(jax.grad(schedule.mask_prob))(jnp.asarray(t)))
    got = schedule.dalpha(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-8)


@every
def test_small_mask_prob_keeps_its_digits(schedule):
    """Near t = 0, where 1 - alpha by subtraction has lost most digits: against float64."""
    t = np.geomspace(1e-6, 1e-2, 50)
    with jax.enable_x64(True):
        want = np.asarray(schedule.mask_prob(jnp.asarray(t, jnp.float64)))
    got = np.asarray(schedule.mask_prob(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(got, want, rtol=2e-5)


@every
def test_zero_network_integrates_to_log_v(schedule):
    """int -alpha'/(1 - alpha) * (1 - alpha) dt + reconstruction = 1, in units of L log V."""
    with jax.enable_x64(True):
        u = (jnp.arange(200_000) + 0.5) / 200_000
        t = u**2  # dense at 0; dt = 2 u du
        weight = -schedule.dalpha(t) / schedule.mask_prob(t)
        integral = float((weight * schedule.mask_prob(t) * 2 * u).mean())
        total = integral + float(schedule.mask_prob(jnp.float64(0)))
    assert abs(total - 1) < 1e-6
    ends = jnp.array([0.0, 1e-30, 1e-7, 1.0])
    assert np.all(np.isfinite(-schedule.dalpha(ends) / schedule.mask_prob(ends)))


@every
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_discrete_weights_sum_to_one(schedule, steps):
    t = jnp.arange(1, steps + 1) / steps
    s = jnp.arange(0, steps) / steps
    weight = processes.reveal_prob(schedule, t, s)
    assert np.all(weight >= 0) and np.all(weight <= 1 + 1e-6)
    total = (weight * schedule.mask_prob(t)).sum() + schedule.mask_prob(jnp.float32(0))
    assert abs(float(total) - 1) < 1e-5


def test_stratified_times_are_spread_and_uniform():
    for size in (1, 2, 7, 93, 512):
        batch = keys.number({"x": jnp.zeros((size, 1))})
        t = np.sort(schedules.stratified_times(jax.random.key(size), batch["slot"]))
        assert t.shape == (size,) and t.min() >= 0 and t.max() < 1
        if size > 1:
            np.testing.assert_allclose(np.diff(t), 1 / size, atol=1e-5)
    one = jax.vmap(lambda i: schedules.stratified_times(jax.random.key(i), jnp.zeros(1))[0])
    draws = np.sort(one(jnp.arange(4000)))
    assert np.abs(draws - (np.arange(4000) + 0.5) / 4000).max() < 1.63 / math.sqrt(4000)


@pytest.mark.parametrize("shape", ["uniform", "cosine"])
def test_grid_ends(shape):
    time = schedules.grid(shape, 10)
    values = np.array([time(float(i)) for i in range(11)])
    assert values[0] == 0 and abs(values[10] - 1) < 1e-6 and np.all(np.diff(values) > 0)


def test_bad_options_are_named():
    for make, options, word in [
        (schedules.linear, {"eps": 0.0}, "eps"),
        (schedules.polynomial, {"power": 0.5}, "power"),
        (schedules.geometric, {"minimum": 2.0, "maximum": 1.0}, "minimum"),
    ]:
        with pytest.raises(ValueError, match=word):
            make(**options)
    with pytest.raises(ValueError, match="uniform, cosine"):
        schedules.grid("cosin", 4)


def test_a_steep_schedule_has_no_nan():
    steep, t = schedules.geometric(maximum=200.0), jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(steep.alpha(t) + steep.mask_prob(t), 1, atol=1e-6)
