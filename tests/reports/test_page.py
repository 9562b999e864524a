"""What every part of a report's page is made with."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_repro.reports.page import best_median_worst, render


@given(st.lists(st.integers(), unique=True))
def test_shown_are_the_ends_and_the_middle_each_once(order):
    shown = best_median_worst(order)
    words = [[], ["Best"], ["Best", "Worst"], ["Best", "Median", "Worst"]]
    assert list(shown.values()) == words[min(len(order), 3)]
    ranks = [order.index(place) for place in shown]
    assert ranks == sorted(ranks, reverse=True)
    if order:
        assert ranks[0] == len(order) - 1
    if len(order) > 1:
        assert ranks[-1] == 0
    if len(order) > 2:  # as many better as worse, or one more
        assert 0 <= (len(order) - 1 - ranks[1]) - ranks[1] <= 1


def test_values_are_escaped_and_none_may_lack():
    with pytest.raises(jinja2.UndefinedError):
        render("classes.html", accuracy=1)
    mean = dict.fromkeys(("iou", "dice", "accuracy"), "<i>")
    empty = {key: [] for key in ("names", "rows", "matrix", "legend", "shown")}
    page = render("classes.html", accuracy="<b>", mean=mean, meaning="", **empty)
    assert "&lt;b&gt;" in page and "<b>" not in page and "<i>" not in page
