"""How faithful a heat map is to its network: deletion, insertion, and agreement with occlusion.

Arithmetic first, tiles after it. Re-initialised weights are drawn in gradcam_figures.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

from cnnvis.occlusion import occlude, occluding_slices
from cnnvis.pages import Tile, matplotlib_defaults, render
from cnnvis.runtime import progress

RANDOM_ORDERS = 10  # that a map's order is compared with
PATCH, STRIDE = 25, 12  # of occlusion: percent of the shorter side


class PerturbationCurve(NamedTuple):
    """Deletion or insertion, by its name.

    curves: probabilities of a class, (11, 11), while 0, 10 … 100 % of the pixels are exchanged: in
    the order of a map, then in ten random orders."""

    name: str
    curves: np.ndarray

    def auc(self) -> tuple[float, float, float]:
        """Areas under the curves: of the map, the mean of random orders, two of their standard
        deviations."""
        area, *others = (self.curves[:, 1:] + self.curves[:, :-1]).mean(axis=1) / 2
        return area, np.mean(others), 2 * np.std(others, ddof=1)

    def verdict(self) -> str:
        """`better than`, `worse than` or `like` chance; a small area of deletion is good."""
        area, chance, spread = self.auc()
        gain = chance - area if self.name == "deletion" else area - chance
        if gain > spread:
            return "better than"
        return "worse than" if gain < -spread else "like"

    def title(self) -> str:
        """The curve's name, its area and its verdict."""
        area, chance, spread = self.auc()
        verdict = f"{self.verdict()} chance, {chance:.4g} ± {spread:.2g}"
        return f"{self.name}: area {area:.4g}\n{verdict}"


def deletion_and_insertion(
    x: np.ndarray, heats: dict, grey: np.ndarray, probabilities_of: Callable
) -> dict[int, list[PerturbationCurve]]:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421, section 4).

    In steps of 10 % of the pixels, the warmest first, the photograph is replaced by grey
    (deletion), or a blurred copy by the photograph (insertion); after the maps, in ten random
    orders of 7 x 7 patches.

    x: float32 (1, H, W, C), as the network is fed; grey: (C,) or (H, W, C), likewise. heats: {class
    index: map (H, W)}. probabilities_of(batch (N, H, W, C)) gives (N, n_classes).
    Returns {class index: [deletion, insertion]}."""
    photo = x[0]
    ranks = exchange_ranks(heats.values(), photo.shape[:2])
    exchanged = np.linspace(0, ranks[0].size, 11).round()[:, None, None, None]
    blurred = cv2.GaussianBlur(photo, (11, 11), 5).reshape(photo.shape)
    found = {index: [] for index in heats}
    for name, start, end in (("deletion", photo, grey), ("insertion", blurred, photo)):
        curves = [probabilities_of(np.where(rank < exchanged, end, start)) for rank in ranks]
        for index, curve in zip(heats, curves, strict=False):
            both = np.stack([curve, *curves[len(heats) :]])[..., index]
            found[index].append(PerturbationCurve(name, both))
    return found


def exchange_ranks(heats: Iterable[np.ndarray], shape: tuple) -> list[np.ndarray]:
    """The rank of each pixel, (H, W, 1): by a map, the warmest first; then in ten random orders."""
    noise = np.random.default_rng(0).random((1 + RANDOM_ORDERS, 7, 7))
    resized = [cv2.resize(each, shape[::-1], interpolation=cv2.INTER_NEAREST) for each in noise]
    ties, *chance = resized  # equally warm pixels are exchanged in random patches too
    orders = [np.lexsort((ties.ravel(), -heat.ravel())) for heat in [*heats, *chance]]
    return [np.argsort(order).reshape(*shape, 1) for order in orders]


def curve_tile(
    perturbation: PerturbationCurve, height: int = 220, scale: int = 1, unit: str = "p"
) -> Tile:
    """A map's curve in red, over that of random orders ± two sample standard deviations.

    unit: p, whose axis starts at 0 and ends at 1 at most, or number, of a regression."""
    curve, *others = perturbation.curves
    mean = np.mean(others, axis=0)
    spread = 2 * np.std(others, axis=0, ddof=1)
    lowest, highest = mean - spread, mean + spread
    if unit == "p":
        lowest, highest = np.maximum(lowest, 0), np.minimum(highest, 1)
    shares = np.linspace(0, 100, 11)
    with matplotlib_defaults():
        figure = Figure(figsize=(2.8, height / 100), dpi=100 * scale)
        axes = figure.add_axes((0.33, 48 / height, 0.61, 1 - 58 / height))
        axes.fill_between(shares, lowest, highest, color="0.85")
        axes.plot(shares, mean, "grey", shares, curve, "C3")
        axes.set(xlim=(0, 100), ylabel="probability" if unit == "p" else unit)
        if unit == "p":
            axes.set_ylim(0, 1.1 * min(max(highest.max(), curve.max()), 1) or 1)
        axes.set_xlabel(f"% of pixels, {perturbation.name}")
        axes.yaxis.set_major_formatter("{x:.2g}" if unit == "p" else "{x:.3g}")
        return Tile(render(figure), perturbation.title())


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of one size; NaN where one is constant."""
    ranks = []
    for values in (first, second):
        # Equal values have their mean rank
        _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[positions.ravel()])
    with np.errstate(invalid="ignore"):
        return np.corrcoef(*ranks)[0, 1]


class Faithfulness(NamedTuple):
    """How faithful a map is to the network.

    curves: of deletion and insertion. drops: how far the class's logit drops where a grey square
    occludes the photograph, (rows, columns). correlation: rank correlation of the drops with the
    mean of the map under the square (Selvaraju et al. 2016, section 5.3)."""

    curves: list
    drops: np.ndarray
    correlation: float

    def tiles(self, explanation: Any, first: Tile) -> list[Tile]:
        """The map's Tile, with what it is better than, and a Tile for each test."""
        names = [each.name for each in self.curves if each.verdict() == "better than"]
        beaten = f"{first.title}\nbeats chance: {' and '.join(names) or 'neither'}"
        scale = explanation.options.scale
        height = max(first.picture.shape[0] // scale, 180)
        unit = explanation.network.unit
        curves = [curve_tile(each, height, scale, unit) for each in self.curves]
        title = f"occlusion\nrank correlation {self.correlation:.2f}"
        how = {"word": "drops by", "lack": "it never drops"}
        occlusion = explanation.heat_tile(explanation.tile(6), self.drops, None, title, **how)
        return [first._replace(title=beaten), *curves, occlusion]

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """The numbers to save, under a key."""
        found = {f"{key}/{each.name}": each.curves for each in self.curves}
        return {**found, f"{key}/occlusion": self.drops}


def measure_faithfulness(explanation: Any, cams: dict) -> dict[int, Faithfulness]:
    """{class: Faithfulness} of the maps {class: map} of a photograph's main layer."""
    x, grey = explanation.x, explanation.grey_input()
    heats = {index: over_input(explanation, cam) for index, cam in cams.items()}
    measure = measure_with_progress(explanation, len(cams))
    curves = deletion_and_insertion(x, heats, grey, lambda batch: measure(batch)[1])
    squares, (logits, _) = occlude(x, grey, measure, PATCH, STRIDE)
    found = {}
    for index, heat in heats.items():
        drops = explanation.logits[index] - logits[..., index]
        occluded = np.array([heat[square].mean() for square in squares])
        found[index] = Faithfulness(curves[index], drops, rank_correlation(occluded, drops))
    return found


def over_input(explanation: Any, cam: np.ndarray) -> np.ndarray:
    """A map of the main layer at the size of the network's input, float32 (H, W)."""
    geometry = explanation.input_geometry(explanation.network.main_layer, cam.shape)
    return geometry.resample(cam, *explanation.x.shape[1:3])


def measure_with_progress(explanation: Any, count: int) -> Callable:
    """The measurement of a batch, which shows how many are left for so many maps."""
    rows = len(occluding_slices(explanation.x.shape[1:3], 0, PATCH, STRIDE))
    advance = progress(2 * (count + RANDOM_ORDERS) + rows)

    def measure(batch):
        found = explanation.measure(batch)
        advance()
        return found

    return measure
