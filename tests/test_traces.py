"""Traces: how samples came about, of every sampler of tokens, and what they do not cost."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_edlm
import test_genmd4
import test_sedd
import toy
from test_rdm import multinomial
from test_samplers import PARAMS, SAMPLERS
from test_sedd import _equations

from diffusion_lm import keys, parallel, sample
from diffusion_lm.objectives import ar, md4
from diffusion_lm.samplers import (
    autoregressive,
    entropy_bounded,
    first_hitting,
    importance,
    routing,
    score,
)
from diffusion_lm.samplers import state_dependent as by_state
from diffusion_lm.types import Sampler

MU = np.exp(toy.DENOISER)  # [64, L, V], the exact prediction of each z
TABLE = np.array([0.5, 0.3, 0.2])
ONCE = {"first_hitting", "random", "confidence", "margin", "entropy", "entropy_bounded"}
ONCE |= {"ancestral", "ancestral_float32", "drawn", "importance", "importance_first_hitting"}
ONCE |= {"state_dependent", "score", "autoregressive"}
TO_THE_END = {"first_hitting", "entropy_bounded", "importance_first_hitting", "autoregressive"}
NAMES = [*SAMPLERS, "state_dependent", "score", "score_corrected", "score_uniform", "importance"]
NAMES += ["importance_first_hitting", "routing_multinomial", "autoregressive"]


def made(name, **more) -> tuple[Sampler, dict]:
    """A sampler by its name here, and the parameters of its exact model."""
    params = PARAMS
    if name in SAMPLERS:
        module, options = SAMPLERS[name]
        objective = toy.objective(md4, toy.exact_network)
    elif name == "state_dependent":
        module, options = by_state, {"num_steps": 4}
        objective, params = test_genmd4.made(toy.exact_network)
    elif name.startswith("score"):
        graph = "uniform" if name == "score_uniform" else "absorbing"
        corrector_steps = 0 if name == "score" else 1
        module, options = score, {"num_steps": 5, "corrector_steps": corrector_steps}
        objective = test_sedd.exact(graph)
    elif name.startswith("importance"):
        order = "ancestral" if name == "importance" else "first_hitting"
        module, options = importance, {"num_steps": 3, "candidates": 4, "order": order}
        objective, params = test_edlm.exact("ar"), test_edlm.PARAMS
    elif name == "routing_multinomial":
        log_p = jnp.log(jnp.asarray(TABLE, jnp.float32))
        module, options = routing, {"num_steps": 4}
        objective = multinomial(lambda z: jnp.broadcast_to(log_p, (*z.shape, toy.V)))
    else:
        module, options = autoregressive, {}
        objective = toy.objective(ar, toy.exact_network)
    takes = inspect.signature(module.make).parameters
    if module is importance:
        more.pop("temperature", None)  # there it is the energy's
    more = {k: v for k, v in more.items() if k in takes}
    return module.make(objective=objective, **options | more), params


def prompts(name):
    """64 rows: nothing given; x^0 given; x^0 given and x^1 to stay unknown."""
    prompt, free = np.full((64, toy.L), toy.MASK, np.int32), np.ones((64, toy.L), bool)
    prompt[20:, 0], free[20:, 0] = 1, False
    if name != "autoregressive":
        free[40:, 1] = False
    return prompt, free


def drawn_by(name, traced=True, **more):
    """(samples, prompt, what is free) of 64 rows."""
    sampler, params = made(name, **more)
    prompt, free = prompts(name)
    keys_B = keys.rows(keys.stream(5, "sample"), jnp.arange(len(prompt)))
    out = jax.jit(partial(sampler.sample, traced=traced))(params, keys_B, prompt, free)
    return jax.tree.map(np.asarray, out), prompt, free


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_ends_in_the_sample(name):
    """It changes nothing of the sample; what is given or stays unknown stands in every step; what
    is free is drawn, with a probability, and by most samplers once."""
    out, prompt, free = drawn_by(name)
    plain, trace = drawn_by(name, traced=False)[0], out.trace
    assert plain.trace is None
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert out.calls == plain.calls
    np.testing.assert_array_equal(trace.tokens[-1], out.tokens)
    states = np.concatenate([trace.start[None], trace.tokens])
    assert trace.prob.shape == trace.tokens.shape == (len(trace.prob), *prompt.shape)
    np.testing.assert_array_equal(states[:, ~free], np.tile(prompt[~free], (len(states), 1)))
    drawn = ~np.isnan(trace.prob)
    assert not drawn[:, ~free].any()
    assert np.all((trace.prob[drawn] > 0) & (trace.prob[drawn] < 1 + 1e-6))
    noisy = name in ("score_uniform", "routing_multinomial")
    if not noisy:
        assert np.all(states[0][free] == toy.MASK)
        assert drawn.any(0)[free].all()  # nothing comes from nowhere
        assert np.all(trace.tokens[drawn] != toy.MASK)
        changed = (states[1:] != states[:-1]) & (states[1:] != toy.MASK)
        assert drawn[changed].all()
    if name in ONCE:
        assert np.all(drawn.sum(0)[free] == 1)
        was, now = states[:-1], states[1:]
        assert np.all((was == toy.MASK) | (was == now))
        np.testing.assert_array_equal(drawn, was != now)
    else:  # or the test would not see what is drawn again
        assert noisy or (drawn.sum(0)[free] > 1).any()
        assert len(np.unique(states[0][free])) == (toy.V if noisy else 1)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("predictor_corrector",)])
def test_probabilities_are_those_of_the_prediction(name):
    """Of what was seen before the step, whatever the temperature; by the table of the toy."""
    out, _, free = drawn_by(name, temperature=0.5, top_p=0.9)
    states, prob = np.concatenate([out.trace.start[None], out.trace.tokens]), out.trace.prob
    checked, schedule = 0, test_sedd.exact("uniform").process(PARAMS).schedule
    clean_given_others = jax.jit(toy.clean_given_others)
    for i, row, place in np.argwhere(~np.isnan(prob)):
        if row >= 40 and name in ("state_dependent", "score_uniform"):
            continue  # what stays unknown is drawn along, and not told
        z = states[i, row].copy()
        token = states[i + 1, row, place]
        if name == "score_corrected":
            if i % 2 == 0 and i:
                continue  # hides before it predicts
        if name == "score_uniform":
            if i % 2 == 0 and i:
                continue
            t = 1 - (i + 1) // 2 / 5
            alpha = np.asarray(schedule.alpha(jnp.float32(min(t, 1 - 1e-6))))
            clean = np.asarray(clean_given_others(z[None], alpha[None]))
            want = (alpha * clean + (1 - alpha) / toy.V)[0, place, token]
        elif name == "routing_multinomial":
            want = TABLE[token]
        else:
            if name == "autoregressive":
                z[place:] = toy.MASK
            want = MU[toy.index(z), place, token]
        assert math.isclose(prob[i, row, place], want, rel_tol=1e-3), (i, row, place)
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", NAMES)
def test_without_a_trace_nothing_is_kept(name):
    """No array over steps, rows and positions is in the program, and one is if a trace is wanted.
    17 steps, or in samplers that go on until all is written, as many as positions."""
    size, length = 5, toy.L
    sampler, params = made(name, num_steps=17)
    keys_B = keys.rows(jax.random.key(0), jnp.arange(size))
    prompt, free = np.full((size, length), toy.MASK), np.ones((size, length), bool)

    def shapes(wanted):
        run = partial(sampler.sample, traced=wanted)
        jaxpr = jax.make_jaxpr(run)(params, keys_B, prompt, free).jaxpr
        return {v.aval.shape for eqn in _equations(jaxpr) for v in eqn.outvars}

    corrected = name in ("predictor_corrector", "score_corrected", "score_uniform")
    steps = length if name in TO_THE_END else 33 if corrected else 17
    assert (steps, size, length) in shapes(True)
    assert (steps, size, length) not in shapes(False)


@pytest.mark.parametrize("module", [first_hitting, entropy_bounded])
def test_steps_are_no_calls(module):
    """With guidance a step calls the network twice."""
    model = toy.objective(md4, toy.exact_network)

    def predict(params, cond=None):
        return model.predict(params, cond)._replace(calls=2)

    options = {"gamma": 0.0} if module is entropy_bounded else {}
    sampler = module.make(objective=model._replace(predict=predict), **options)
    prompt, free = prompts("")
    keys_B = keys.rows(jax.random.key(0), jnp.arange(len(prompt)))
    out = sampler.sample(PARAMS, keys_B, prompt, free, traced=True)
    assert int(out.calls) == 2 * toy.L
    np.testing.assert_array_equal(out.trace.tokens[-1], out.tokens)
    drawn = ~np.isnan(out.trace.prob[:, :20])  # rows in which all is free
    np.testing.assert_array_equal(drawn.sum(2), 1)


def test_memory_of_the_compiled_sampler():
    """What `sample.compiled` holds without a trace does not grow with the number of steps."""
    mesh, size = parallel.make_mesh(data=1, devices=jax.devices()[:1]), 64
    keys_B = keys.rows(jax.random.key(0), jnp.arange(size))
    prompt, free = np.full((size, toy.L), toy.MASK), np.ones((size, toy.L), bool)

    def held(steps, wanted):
        sampler, params = made("ancestral", num_steps=steps)
        run = sample.compiled(sampler, mesh, traced=wanted)
        memory = run.lower(params, keys_B, prompt, free).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    one_array = 1000 * size * toy.L * 4
    assert held(2000, False) - held(1000, False) < 0.05 * one_array  # the times of the steps
    assert held(2000, True) - held(1000, True) >= 2 * one_array


def test_blocks_are_put_together():
    """Windows of 3 over 8 tokens, of which the last is given: one token a step, at its place in the
    whole text, whichever window it was drawn in."""
    model = toy.objective(md4, toy.exact_network)
    sampler = jax.jit(partial(first_hitting.make(objective=model).sample, traced=True))
    tokens, free = np.full(8, toy.MASK, np.int32), np.ones(8, bool)
    tokens[7], free[7] = 2, False
    keys_B = keys.rows(jax.random.key(1), jnp.arange(4))
    out = sample.in_blocks(
        sampler,
        PARAMS,
        keys_B,
        sample.Prompt(tokens, free),
        window=toy.L,
        block=2,
        mask=toy.MASK,
        cond=None,
    )
    assert len(out.trace) == 4
    for row, steps in zip(out.tokens, out.trace, strict=True):
        text = tokens.copy()
        for step in steps:
            assert np.all(text[step.places] == toy.MASK)
            text[step.places] = step.tokens
            assert np.all(step.prob > 0) and math.isnan(step.effective)
        np.testing.assert_array_equal(text, row)
        assert [len(step.places) for step in steps] == [1] * 7
        blocks = [int(step.places[0]) // 2 for step in steps]
        assert blocks == sorted(blocks)


def test_effective_sample_sizes_stand_at_their_steps():
    sampler, params = made("importance")
    prompt, free = prompts("importance")
    keys_B = keys.rows(jax.random.key(2), jnp.arange(len(prompt)))
    out = jax.jit(partial(sampler.sample, traced=True))(params, keys_B, prompt, free)
    for row, steps in enumerate(sample.steps_of(out, prompt, 10)):
        sizes = np.asarray(out.effective)[:, row]
        np.testing.assert_array_equal([s.effective for s in steps], sizes[~np.isnan(sizes)])
        assert all(np.all(step.places >= 10) for step in steps)


def test_noise_that_is_no_mask_is_a_step():
    """The text before knows nothing; then there is noise, without probabilities."""
    out, prompt, free = drawn_by("score_uniform")
    for row, steps in enumerate(sample.steps_of(out, prompt, 0)):
        np.testing.assert_array_equal(steps[0].places, np.flatnonzero(free[row]))
        assert np.isnan(steps[0].prob).all()
        text = prompt[row].copy()
        for step in steps:
            text[step.places] = step.tokens
        np.testing.assert_array_equal(text, out.tokens[row])
