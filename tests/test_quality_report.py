"""The report on the studies: its statistics, and that the pages say what the raw results say."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.documents import markdown_table, write_figures
from benchmarks.quality import report
from benchmarks.quality.report import Estimate, against, estimate, when_stopped

PAGES = [report.DOCS / "when-to-use.md", report.DOCS / "results.md"]


@pytest.fixture(scope="module")
def figures():
    return report.figures(report.RAW)


def test_the_interval_is_that_of_a_t_test():
    values = [1.0, 2.5, 3.0, 4.5, 4.0]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = estimate(values)
    assert found.mean - found.half_width == pytest.approx(interval.low)
    assert found.mean + found.half_width == pytest.approx(interval.high)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((-0.2, 0.1), "better"),
        ((0.2, 0.1), "worse"),
        ((-0.1, 0.2), "no significant difference"),
        ((0.0, 0.0), "equal"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(difference, verdict):
    assert Estimate(*difference).verdict() == verdict


def test_an_arrow_compares_seed_by_seed_whatever_the_order_of_the_seeds():
    losses = pd.Series({0: 1.0, 1: 2.0, 2: 3.0})
    assert against(losses, losses + 0.1).endswith("↓")
    assert against(losses[::-1], losses - 0.1).endswith("↑")
    assert not against(losses, pd.Series({0: 1.2, 1: 1.8, 2: 3.0})).endswith(("↓", "↑"))


def test_a_stopped_run_is_judged_by_its_best_checkpoint_so_far_on_the_validation_split():
    curve = {1: (3.0, 30.0), 2: (1.0, 12.0), 3: (2.0, 10.0)}  # validation and test losses by updates
    rows = [
        {"seed": 0, "updates": updates, "on": on, "loss": loss}
        for updates, losses in curve.items()
        for on, loss in zip(("validation", "test"), losses)
    ]
    assert when_stopped(pd.DataFrame(rows)).to_dict() == {0: (30 + 12 + 12) / 3}


def test_figures_are_written_on_lines_of_their_own_and_within_a_line():
    document = "a <!-- figures: x -->old<!-- end of x --> b\n<!-- figures: y -->\n<!-- end of y -->\n"
    written = write_figures(document, {"x": "1", "y": markdown_table(["h", "i"], [["j", "k"]]), "z": "not asked for"})
    assert written == (
        "a <!-- figures: x -->1<!-- end of x --> b\n"
        "<!-- figures: y -->\n| h | i |\n| --- | ---: |\n| j | k |\n<!-- end of y -->\n"
    )
    assert write_figures(written, {"x": "1", "y": "2"}).count("2") == 1


def test_a_document_that_names_a_figure_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"Expected the name of a figure, but got 'bets' \(near it: best\)"):
        write_figures("<!-- figures: bets --><!-- end of bets -->", {"best": "text"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_holds_the_figures_that_the_raw_results_give(figures, page):
    text = page.read_text()
    assert "<!-- figures: " in text
    assert write_figures(text, figures) == text


def test_numbers_have_a_minus_sign_and_no_place_where_a_line_could_break():
    assert Estimate(-0.2, 0.1).text() == "\u22120.200\u00a0±\u00a00.100"
    assert Estimate(-0.2, 0.1).difference() == "\u22120.200\u00a0±\u00a00.100\u00a0↓"
