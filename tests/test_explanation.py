"""Tiles of a network whose output is a number: red where it is raised, blue where lowered."""

import numpy as np
import pytest
from helpers import shake, small
from runs import CAT

from cnnvis import pages, results


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("figure", ["classes", "layers"])
def test_a_number_is_drawn_signed(run, monkeypatch, sign, figure):
    drawn, make_page = [], results.make_page

    def keep(rows, *more):
        drawn.append(rows)
        return make_page(rows, *more)

    monkeypatch.setattr(results, "make_page", keep)
    model = shake(small(None, 1))
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([sign * np.abs(kernel), bias])
    model.save("number.keras")
    done = run("gradcam_resnet50", CAT, f"--weights number.keras --figures {figure}")
    assert done.code == 0
    *_, tile = drawn[0][0]
    red, _, blue = tile.picture.reshape(-1, 3).mean(axis=0)
    assert (red > blue) == (sign > 0) and " to " in tile.title


def test_trust_of_a_number_names_no_probability(run, monkeypatch):
    units = []

    def spy(perturbation, height, scale, unit):
        units.append(unit)
        return pages.Tile(np.zeros((9, 9, 3), np.uint8))

    monkeypatch.setattr("cnnvis.faithfulness.curve_tile", spy)
    shake(small(None, 1)).save("number.keras")
    done = run("gradcam_resnet50", CAT, "--weights number.keras --figures trust")
    assert done.code == 0 and set(units) == {"number"}
