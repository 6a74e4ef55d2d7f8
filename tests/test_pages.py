"""Pages: titles that no font can draw, and matplotlib's settings of a person."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from cnnvis import pages, runtime

PATTERN = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


@pytest.mark.parametrize("has_font", [True, False])
def test_characters_that_no_font_has_are_reported_once(monkeypatch, capsys, has_font):
    runtime.log_once.cache_clear()
    known = pages.known_characters() - {ord("猫")} | ({ord("猫")} if has_font else set())
    monkeypatch.setattr(pages, "known_characters", lambda: known)
    for title in ("Überraß · ≥ 0.5 →", "猫", "猫 2"):
        pages.make_page([[pages.Tile(PATTERN, title)]], "heading", title)
    err = capsys.readouterr().err
    assert (
        err.count("U+732B CJK UNIFIED IDEOGRAPH-732B: titles show boxes")
        == err.count("\n")
        == (not has_font)
    )


def test_fonts_of_this_machine_are_used_for_other_characters(monkeypatch):
    installed = [pages.font_manager.FontEntry(name="Noto Emoji")]
    monkeypatch.setattr(pages.font_manager.fontManager, "ttflist", installed)
    assert pages.font_families.__wrapped__() == ["DejaVu Sans Mono", "Noto Emoji"]


@pytest.mark.parametrize("scale", [1, 2])
def test_pixels_of_a_page_are_those_of_its_matplotlib_figure(scale):
    """Which is what a PDF shows."""
    rows = [[pages.Tile(PATTERN, "one"), pages.Tile(PATTERN[:, :31], "two\nlines")]] * 2
    page = pages.make_page(rows, "heading", "note", [pages.Bar("jet", "max")], scale)
    with pages.matplotlib_defaults():
        expected = pages.render(page.figure())
    np.testing.assert_array_equal(page.pixels(), expected)


def test_rendered_pixels_do_not_depend_on_a_person_s_matplotlibrc():
    def draw():
        return pages.make_page([[pages.Tile(PATTERN, "one")]], "heading", "note").pixels()

    expected = draw()
    settings = {"image.origin": "lower", "figure.facecolor": "red", "text.color": "white"}
    settings |= {"font.size": 30, "text.antialiased": False, "savefig.dpi": 300}
    with matplotlib.rc_context(settings):
        np.testing.assert_array_equal(draw(), expected)
        assert matplotlib.rcParams["font.size"] == 30  # a notebook's settings are restored
    blank = pages.render(Figure((1, 1), dpi=50, facecolor="white"))
    assert blank.shape == (50, 50, 3) and (blank == 255).all()


def test_a_title_of_many_lines_is_cut_in_the_middle():
    page = pages.make_page(
        [[pages.Tile(PATTERN, f"first {'very ' * 99}\nlast")]], "heading", "note"
    )
    lines = page.texts[-1][2].split("\n")
    assert (len(lines), lines[0], lines[-2:]) == (pages.LINES + 1, "first very", ["…", "last"])
