"""No two streams share noise, and noise depends on the row and the step alone."""

import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_lm
from diffusion_lm import keys


def test_streams_steps_seeds_and_rows_differ():
    seen = set()
    for seed, name, step in itertools.product((0, 1), ("init", "loss", "sample"), (0, 1, 2)):
        key = keys.stream(seed, name, step)
        for row in keys.rows(key, jnp.arange(3)):
            seen.add(tuple(np.asarray(jax.random.key_data(row))))
    assert len(seen) == 2 * 3 * 3 * 3


def test_stream_names_in_the_package_are_distinct():
    """Each stream name is used in one place, so no two uses of randomness share a key."""
    folder = pathlib.Path(diffusion_lm.__file__).parent
    pattern = re.compile(r"\bstream\([^,]+,\s*f?\"([^\"{]+)")
    names = [m for f in folder.rglob("*.py") for m in pattern.findall(f.read_text())]
    assert len(names) >= 4 and len(set(names)) == len(names), names


def test_number_gives_rows_and_slots():
    batch = keys.number({"x": jnp.zeros((5, 2))})
    np.testing.assert_array_equal(batch["row"], np.arange(5))
    np.testing.assert_allclose(batch["slot"], np.arange(5) / 5)


def test_split_keys_are_all_different():
    split = keys.split(keys.rows(jax.random.key(0), jnp.arange(4)), 3)
    assert split.shape == (3, 4)
    data = np.asarray(jax.random.key_data(split)).reshape(12, -1)
    assert len(np.unique(data, axis=0)) == 12
