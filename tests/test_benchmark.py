"""README claims what one run of benchmark.py measured, line for line; nothing is timed here."""

import json

import pytest
from benchmark import HERE, Line, summary

RUN = json.loads((HERE / "benchmark.json").read_text(encoding="utf-8"))
LINES = [Line(**{field: line[field] for field in Line._fields}) for line in RUN["lines"]]


@pytest.fixture(scope="module")
def table():
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    section = text.partition("## How it compares")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line[:1] == "|"]


def test_readme_shows_the_lines_of_one_run_in_their_order(table):
    assert table[2:] == [summary(line) for line in LINES]


def test_the_peers_were_there():
    assert {"tf-keras-vis", "torch", "captum"} <= set(RUN["packages"]) and all(
        line.rounds for line in LINES
    )


@pytest.mark.parametrize(
    "rounds, least, aim",
    [
        ([3, 1, 2], False, "≤ 2"),
        ([3, 1, 2.1], False, "≤ 2, missed"),
        ([3, 1, 2], True, "≥ 2"),
        ([3, 1, 1.9], True, "≥ 2, missed"),
    ],
)
def test_a_missed_aim_is_said(rounds, least, aim):
    line = Line("claim", rounds, "passes", 2, "ours", "theirs", least)
    assert summary(line) == f"| claim | {sorted(rounds)[1]:.3g} passes | {aim} |"


def test_an_absent_peer_has_no_number():
    assert summary(Line("claim", [], "", None, "", "absent")) == "| claim |  |  |"
