"""The Markov source: its probabilities are those of what it draws."""

import itertools
import math

import numpy as np
import pytest

from diffusion_lm.data import markov

TINY = {"vocab_size": 3, "order": 2, "length": 4, "train_windows": 40_000, "other_windows": 10}


def test_log_probabilities_are_those_of_the_draws():
    data = markov.make(**TINY, concentration=0.5)
    x = np.array(list(itertools.product(range(3), repeat=4)))
    p = np.exp(markov.log_prob(data.source, x))
    assert abs(p.sum() - 1) < 1e-9
    drawn = data.windows("train").tokens @ 3 ** np.arange(3, -1, -1)
    share = np.bincount(drawn, minlength=81) / len(drawn)
    assert np.abs(share - p).sum() / 2 < 0.02
    assert abs(markov.entropy(data.source, 4) + (p * np.log(p)).sum()) < 1e-9
    triples = np.zeros((3, 3, 3))
    for first in (0, 1):
        np.add.at(triples, tuple(x[:, first : first + 3].T), p / 2)
    np.testing.assert_allclose(markov.tuples(data.source, 4), triples, atol=1e-12)


def test_every_symbol_is_a_character():
    windows = markov.make(**TINY).windows("valid")
    assert windows.chars == windows.bytes == windows.tokens.size


def test_splits_differ_and_a_seed_repeats():
    one, two = (markov.make(**TINY) for _ in range(2))
    assert one.windows("train").fingerprint == two.windows("train").fingerprint
    assert one.windows("valid").fingerprint != one.windows("test").fingerprint
    other = markov.make(**TINY, source_seed=1)
    assert np.abs(other.source - one.source).max() > 0.1
    assert one.vocab_size == 3 and one.windows("train").tokens.max() == 2
    assert one.tokenizer.decode([0, 1]) == "ab"
    worst = markov.log_prob(one.source, np.indices((3,) * 4).reshape(4, -1).T).min()
    assert worst > 4 * math.log(markov.NOISE / 3)  # nothing has probability 0


@pytest.mark.parametrize(
    "option,value",
    [
        ("vocab_size", 1),
        ("vocab_size", 28),
        ("order", 0),
        ("length", 2),
        ("concentration", 0.0),
        ("train_windows", 0),
    ],
)
def test_mistaken_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"data.{option}"):
        markov.make(**{**TINY, option: value})
