"""Which kernels are drawn: by their responses in inner cells, and how little they correlate."""

import numpy as np

from cnnvis.activations import diverse_kernels, inner_responses


def test_kernels_are_ranked_by_their_response_inside():
    maps = np.zeros((5, 5, 3), np.float32)
    maps[0, 0, 0], maps[2, 2, 1], maps[1, 3, 2] = 9, 1, 2
    inside = np.zeros((5, 5), bool)
    assert inner_responses(maps, inside).tolist() == [9, 1, 2]
    inside[1:-1, 1:-1] = True
    two = inner_responses(np.stack([maps, 2 * maps]), inside)
    assert two.tolist() == [[0, 1, 2], [0, 2, 4]]
    assert diverse_kernels(maps, inside, 2) == [2, 1]
    assert diverse_kernels(maps[..., :1], inside) == [0]


def test_diverse_kernels_correlate_little_and_are_filled_up():
    base = np.random.default_rng(3).random((2, 6, 6)).astype(np.float32)
    first, second = base / base.max(axis=(1, 2), keepdims=True)
    kernels = [first, 0.9 * first, 0.8 * second, np.ones((6, 6), np.float32)]
    maps, inside = np.stack(kernels, axis=-1), np.ones((6, 6), bool)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.8
    assert diverse_kernels(maps, inside, 2) == [0, 2]
    assert diverse_kernels(maps, inside) == [0, 2, 1]
    assert diverse_kernels(np.ones((6, 6, 3)), inside, 2) == [0, 1]
