"""Patches of projections: they hold their share, and no smaller size does."""

from types import SimpleNamespace

import numpy as np
import pytest

from cnnvis import projections


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_patches_hold_the_share_and_no_smaller_size_does(seed, share):
    generator = np.random.default_rng(seed)
    values = np.zeros((4, 30, 41, 3), np.float32)
    for one in values[:3]:  # the last one is silent
        y, x, side = generator.integers((0, 0, 3), (25, 36, 9))
        lit = one[y : y + side, x : x + side]
        lit[:] = generator.normal(size=lit.shape)
    found = [SimpleNamespace(values={"max": each}) for each in values]
    projections.cut_patches(found, "max", share)
    short = []
    for each in found:
        mass = np.abs(each.values["max"].astype(float)).sum(axis=-1)
        rows, columns = each.patch
        side = rows.stop - rows.start
        first = found[0].patch[0]
        assert side == columns.stop - columns.start == first.stop - first.start
        assert mass[each.patch].sum() >= share * mass.sum() * (1 - 1e-9)
        running = [np.cumsum(mass.sum(axis=other)) for other in (1, 0)]
        middle = [np.searchsorted(along, along[-1] / 2) for along in running]
        smaller = projections.square_around(middle, side - 1, mass.shape)
        short.append(mass[smaller].sum() < share * mass.sum())
    assert any(short)
