"""Faithfulness against second computations: plain loops and counted pairs."""

import cv2
import numpy as np
import pytest
from helpers import random_map

from cnnvis import faithfulness

SEEDS = range(8)


def answer(batch):
    """Three made-up probabilities of pictures: sums over the upper half, the left half, all."""
    halves = [batch[:, :6], batch[:, :, :8], batch]
    sums = np.stack([half.sum(axis=(1, 2, 3)) / 500 for half in halves], axis=1)
    return np.exp(sums) / np.exp(sums).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_deletion_and_insertion_against_a_plain_loop(channels):
    x = np.random.default_rng(1).normal(size=(1, 13, 17, channels)).astype(np.float32)
    grey = np.full(channels, 0.25, np.float32)
    distinct = np.random.default_rng(2).permutation(13 * 17).reshape(13, 17).astype(np.float32)
    deletion, insertion = faithfulness.deletion_and_insertion(x, {2: distinct}, grey, answer)[2]
    assert deletion.curves.shape == insertion.curves.shape == (11, 11)
    blurred = cv2.GaussianBlur(x[0], (11, 11), 5).reshape(x[0].shape)
    order = sorted(np.ndindex(13, 17), key=lambda at: -distinct[at])
    for step in range(11):
        deleted, inserted = x[0].copy(), blurred.copy()
        for at in order[: round(221 * step / 10)]:
            deleted[at], inserted[at] = grey, x[0][at]
        expected = answer(np.stack([deleted, inserted]))[:, 2]
        np.testing.assert_allclose(deletion.curves[0, step], expected[0], rtol=1e-6)
        np.testing.assert_allclose(insertion.curves[0, step], expected[1], rtol=1e-6)


VERDICTS = [(0.69, "like", "like"), (0.71, "worse", "better"), (0.29, "better", "worse")]


@pytest.mark.parametrize("level, deletion, insertion", VERDICTS)
def test_verdict_is_two_deviations_of_the_areas(level, deletion, insertion):
    curves = np.repeat([[level], [0.4], [0.5], [0.6]], 11, axis=1)  # chance: 0.5 ± 0.2
    assert faithfulness.PerturbationCurve("insertion", curves).verdict().split()[0] == insertion
    title = faithfulness.PerturbationCurve("deletion", curves).title()
    assert title.startswith(f"deletion: area {level}\n{deletion}") and title.endswith("0.5 ± 0.2")


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_correlation_counts_pairs(seed):
    first, second = random_map(seed), random_map(seed + 100) + random_map(seed)
    ranks = []
    for values in (first.ravel(), second.ravel()):
        lower = (values[None] < values[:, None]).sum(axis=1)
        equal = (values[None] == values[:, None]).sum(axis=1)
        ranks.append(lower + (equal - 1) / 2)
    a, b = (rank - rank.mean() for rank in ranks)
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert faithfulness.rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    assert faithfulness.rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert np.isnan(faithfulness.rank_correlation(first, np.full(first.shape, 0.1)))
