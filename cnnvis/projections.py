"""Projections of kernels, and their patches: cut, laid out, and drawn as tiles.

Computing projections is the method of the DeconvNet scripts, choosing kernels is in
activations.py; neither is in here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cnnvis.pages import GAP, PAGE_WIDTH, Tile, mosaic
from utils import resize, signed_grey

PATCH_SIDE = 100  # pixels of a page of scale 1: no patch is drawn smaller
TILE_HEIGHTS = (100, 280)  # least and most pixels of photographs that are side by side


class Projection(NamedTuple):
    """How a kernel is projected: mode and rule of `deconvnet`."""

    mode: str
    rule: str

    def title(self) -> str:
        """Its title on a page."""
        return f"{self.rule}: {'whole map' if self.mode == 'all' else 'strongest patch'}"


@dataclass
class KernelProjections:
    """The projections of one kernel for one photograph, and the patch that is cut out of them."""

    kernel: int
    stem: str  # of the photograph's results
    input_image: np.ndarray  # uint8 (H, W, 3), the photograph as the network sees it
    activation: np.ndarray | None = None  # the kernel's feature map, (h, w)
    values: dict = field(default_factory=dict)  # {Projection: float32 (H, W, channels)}
    patch: tuple = ()  # slices of y and x
    response: float = 0  # the kernel's strongest one in inner cells, where that is known


def cut_patches(
    found: Sequence[KernelProjections], projection: Projection, share: float = 0.95
) -> None:
    """Set the patches: squares of one size around the medians of projections of mode max.

    The size is the smallest at which each holds a share of its projection's absolute values."""
    projected = [each.values[projection] for each in found]
    masses = [np.abs(values).sum(axis=-1, dtype=np.float64) for values in projected]
    medians = [median_position(mass) for mass in masses]
    size = 1
    for mass, median in zip(masses, medians, strict=True):
        while mass[square_around(median, size, mass.shape)].sum() < share * mass.sum():
            size += 1
    for each, mass, median in zip(found, masses, medians, strict=True):
        each.patch = square_around(median, size, mass.shape)


def median_position(mass: np.ndarray) -> tuple[int, int]:
    """The row and the column up to which half of a map (H, W) of values >= 0 is reached."""
    sums = [np.cumsum(mass.sum(axis=other)) for other in (1, 0)]
    row, column = (int(np.searchsorted(along, along[-1] / 2)) for along in sums)
    return row, column


def square_around(centre: Sequence[int], size: int, shape: tuple) -> tuple[slice, ...]:
    """Slices of a square, moved inside a picture (H, W); a side that is too long is cut."""
    sides = np.minimum(size, shape)
    starts = np.clip(centre - sides // 2, 0, shape - sides)
    return tuple(slice(*ends) for ends in zip(starts, starts + sides, strict=True))


def patch_side(image: np.ndarray, scale: int) -> int:
    """The side of a patch beside a tile: as long as the tile's shorter side, or PATCH_SIDE."""
    return max(min(image.shape[:2]), PATCH_SIDE * scale)


def projection_arrays(
    options: argparse.Namespace,
    layer: str,
    found: Sequence[KernelProjections],
    several: bool = False,
) -> dict[str, np.ndarray]:
    """Projections to save, as LAYER/KERNEL, followed by what is not the first of the options.

    several: they are of several photographs, whose stems follow."""
    arrays = {}
    for each in found:
        for projection, values in each.values.items():
            words = [layer, str(each.kernel)]
            if projection.mode != options.mode:
                words.append(projection.mode)
            if projection.rule != options.rules[0]:
                words.append(projection.rule)
            if several:
                words.append(each.stem)
            arrays["/".join(words)] = values
    return arrays


def tiles_of_one_height(explanations: Sequence[Any], times: int) -> list[np.ndarray]:
    """The photographs of Explanations, as tiles of a row that holds each of them `times` times."""
    images = [explanation.photo.image for explanation in explanations]
    proportions = [image.shape[1] / image.shape[0] for image in images]
    height = (PAGE_WIDTH - 100) / sum(proportions) / times
    height = int(np.clip(height, *TILE_HEIGHTS) * explanations[0].options.scale)
    tiles = []
    for image, proportion in zip(images, proportions, strict=True):
        tiles.append(resize(image, max(round(height * proportion), 1), height))
    return tiles


class MosaicLayout(NamedTuple):
    """How the patches of kernels are laid out on a page."""

    across: int  # patches side by side in a mosaic
    side: int  # pixels of a patch
    per_row: int  # mosaics side by side


def mosaic_layout(options: argparse.Namespace, count: int) -> MosaicLayout:
    """The MosaicLayout of `count` patches a kernel, and as many projections by each rule."""
    across = min(count, 3)
    side = PATCH_SIDE if across == 3 else round(1.5 * PATCH_SIDE)
    of_kernel = 1 + len(options.rules)
    width = across * (side + 2) + GAP
    kernels_per_row = max(1, round(PAGE_WIDTH / of_kernel / width))
    return MosaicLayout(across, side * options.scale, of_kernel * kernels_per_row)


def kernel_mosaics(
    found: Sequence[KernelProjections],
    across: int,
    side: int,
    mode: str,
) -> list[Tile]:
    """The Tiles of one kernel: the patches of photographs, and their projections by each rule.

    found: of the photographs, strongest first, with responses. mode: of preprocessing."""
    title = f"kernel {found[0].kernel}"
    pictures = [resize(each.input_image[each.patch], side, side) for each in found]
    span = f"{found[0].response:.3g} to {found[-1].response:.3g}"
    tiles = [Tile(mosaic(pictures, across), f"{title}: {span}")]
    square = np.empty((side, side))
    for projection in found[0].values:
        patches = [each.values[projection][each.patch] for each in found]
        pictures = [signed_grey(values, square, mode) for values in patches]
        tiles.append(Tile(mosaic(pictures, across), f"{title}: {projection.rule}"))
    return tiles
