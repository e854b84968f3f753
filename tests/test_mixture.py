"""The mixture with an n-gram and a cache: its definition, its weights, and that nothing looks ahead."""

import math

import numpy as np
import pytest
import torch

from tandem.mixture import MEAN_OVER, MODEL_AT_START, SHARPNESSES, cache_probabilities, mix


def test_cache_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, size = torch.randn(40, 6, generator=generator, dtype=torch.float64), 9
    ids = torch.randint(5, (41,), generator=generator)
    found = cache_probabilities(iter(hidden.split(7)), ids, size)
    for t in range(40):
        for place, sharpness in enumerate(SHARPNESSES):
            mass = dict.fromkeys(range(5), 0.0)
            for i in range(max(0, t - size), t):
                cosine = torch.nn.functional.cosine_similarity(hidden[t], hidden[i], dim=0)
                mass[int(ids[i + 1])] += math.exp(sharpness * float(cosine))
            total = sum(mass.values())
            expected = mass[int(ids[t + 1])] / total if total else 0.0
            assert found[t, place] == pytest.approx(expected, abs=1e-5)


def test_cache_does_not_look_ahead() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, ids = torch.randn(60, 4, generator=generator), torch.randint(3, (61,), generator=generator)
    whole = cache_probabilities(iter(hidden.split(16)), ids, 20)
    other = ids.clone()
    other[32:] = (other[32:] + 1) % 3
    changed = cache_probabilities(iter(hidden.split(16)), other, 20)
    assert (whole[:31] == changed[:31]).all()
    assert (whole[31:] != changed[31:]).any()


def test_weights_follow_what_came_and_start_from_the_model() -> None:
    parts = np.array([[0.1, 0.4, 0.0], [0.3, 0.2, 0.5], [0.2, 0.2, 0.0]])
    weights = np.array([MODEL_AT_START, (1 - MODEL_AT_START) / 2, (1 - MODEL_AT_START) / 2])
    mixed, expected = mix(parts), []
    for given in parts:
        expected.append(-math.log(weights @ given))
        weights = (1 - 1 / MEAN_OVER) * weights + weights * given / (weights @ given) / MEAN_OVER
    assert mixed.losses == pytest.approx(expected)
    assert sum(mixed.weights) == pytest.approx(1)


def test_mixture_finds_the_better_part_and_the_better_blend() -> None:
    rng = np.random.default_rng(0)
    better = np.stack((np.full(20_000, 0.01), np.full(20_000, 0.2)), axis=1)
    assert mix(better).losses[-1] == pytest.approx(-math.log(0.2), abs=0.01)
    # Each part knows half of the tokens: the blend is better than either.
    known = rng.integers(2, size=20_000)
    halves = np.where(np.arange(2) == known[:, None], 0.5, 0.001)
    alone = -np.log(halves).mean(axis=0)
    assert mix(halves).nll_nats < alone.min() - 1


def test_a_token_that_no_part_expects_is_refused() -> None:
    with pytest.raises(ValueError, match="token 2"):
        mix(np.array([[0.5, 0.5], [0.0, 0.0]]))
