"""Which kernels are drawn, and which photographs of a folder excite each kernel most.

It reads activations of a layer only; projecting kernels back to pixels is in the scripts."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cnnvis.geometry import true_span
from cnnvis.graph import get_operation
from cnnvis.networks import Network
from cnnvis.pages import in_rows
from cnnvis.photos import PhotoSet
from cnnvis.runtime import keras, progress, tf
from utils import UserError

TOP_COUNT = 9  # photographs that are kept of each kernel


def inner_responses(activations: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The strongest response, (…, K), of each kernel of feature maps (…, h, w, K) in inner cells.

    inside: bool (h, w), see Network.inner_cells; all cells count where none is inside. Some kernels
    respond most to the black frame of zero padding."""
    counted = inside if inside.any() else np.ones_like(inside)
    return activations[..., counted, :].max(axis=-2)


def diverse_kernels(
    activations: np.ndarray, inside: np.ndarray, count: int = 9, limit: float = 0.8
) -> list[int]:
    """Strong kernels of a layer, (h, w, K), whose feature maps differ.

    The strongest one, then the strongest whose maps correlate less than `limit` with all chosen
    ones; filled up with the strongest of the rest whose maps vary."""
    responses = inner_responses(activations, inside)
    ranked = np.argsort(-responses, kind="stable").tolist()
    maps = activations.reshape(-1, activations.shape[-1]).T  # (K, cells)
    varied = [kernel for kernel in ranked if np.ptp(maps[kernel])]
    if not varied:
        return ranked[:count]
    with np.errstate(invalid="ignore"):  # of kernels that do not vary
        correlations = np.atleast_2d(np.corrcoef(maps))
    chosen = []
    for kernel in varied:
        if len(chosen) < count and (correlations[kernel, chosen] < limit).all():
            chosen.append(kernel)
    rest = [kernel for kernel in varied if kernel not in chosen]
    return (chosen + rest)[:count]


class TopActivations(NamedTuple):
    """The photographs that excite each kernel most, TOP_COUNT at most, strongest first.

    Of equally strong ones the first comes first."""

    activations: np.ndarray  # float32 (n, K)
    photo_indices: np.ndarray  # int (n, K)

    @classmethod
    def none(cls, kernels: int) -> TopActivations:
        """Those of no photographs."""
        return cls(np.zeros((0, kernels), np.float32), np.zeros((0, kernels), int))

    def of(self, kernel: int) -> np.ndarray:
        """Indices of the photographs that excite a kernel, at least one."""
        count = max(1, int((self.activations[:, kernel] > 0).sum()))
        return self.photo_indices[:count, kernel]

    def response(self, kernel: int, photo_index: int) -> float:
        """The response of a kernel to one of the photographs that excite it."""
        return float(self.activations[self.photo_indices[:, kernel] == photo_index, kernel][0])

    def merge(self, activations: np.ndarray, photo_indices: np.ndarray) -> TopActivations:
        """The top of these and of other photographs: activations (n, K), indices (n, 1)."""
        photo_indices = np.broadcast_to(photo_indices, activations.shape)
        photo_indices = np.concatenate([self.photo_indices, photo_indices])
        activations = np.concatenate([self.activations, activations])
        order = np.lexsort((photo_indices, -activations), axis=0)[:TOP_COUNT]
        return TopActivations(
            np.take_along_axis(activations, order, axis=0),
            np.take_along_axis(photo_indices, order, axis=0),
        )


def scan(network: Network, photos: PhotoSet) -> TopActivations:
    """The TopActivations of the main layer over all photographs, by responses in inner cells."""
    respond = response_function(network)
    kernels = get_operation(network.model, network.main_layer).output.shape[-1]
    top = TopActivations.none(kernels)
    for batch in read_ahead(photos, network.prepare):
        photo_indices, inputs = zip(*batch, strict=True)
        activations = respond(np.concatenate(inputs)).numpy()
        top = top.merge(activations, np.array(photo_indices)[:, None])
    first, *others = photos.gather(tuple(top))
    top = TopActivations(*first)
    for other in others:
        top = top.merge(*other)
    return top


def response_function(network: Network) -> Callable:
    """A traced function from inputs (N, H, W, channels) to responses (N, K) of the main layer."""
    entry = network.model.inputs[0]
    part = keras.Model(entry, get_operation(network.model, network.main_layer).output)
    inside = network.inner_cells(network.main_layer)
    rows, columns = true_span(inside.any(axis=1)), true_span(inside.any(axis=0))

    def respond(x):
        activations = part(x, training=False)
        if len(activations.shape) == 4:
            activations = tf.reduce_max(activations[:, rows, columns], axis=(1, 2))
        return activations

    return tf.function(respond, [tf.TensorSpec((None, *entry.shape[1:]), tf.float32)])


def read_ahead(
    photos: PhotoSet, prepare: Callable, size: int = 8
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Lists of (index, network's input) of readable photographs, read one list ahead of use."""

    def read(index):
        pixels = photos.decode(photos.paths[index])
        return pixels if isinstance(pixels, UserError) else prepare(pixels)

    indices = [photos.order[path] for path in photos.share]
    advance = progress(len(indices))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ahead = []
        for chunk in [*in_rows(indices, size), ()]:
            if photos.cluster:
                photos.cluster.check()
            ready = ahead
            ahead = [(index, pool.submit(read, index)) for index in chunk]
            batch = []
            for index, future in ready:
                inputs = future.result()
                if isinstance(inputs, UserError):
                    photos.report(photos.paths[index], inputs)
                else:
                    batch.append((index, inputs))
                advance()
            if batch:
                yield batch
