"""What every part of a report's page is made with: templates, and which pictures are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from unet_repro.reports.evaluation import is_number


def render(template: str, **values: Any) -> Markup:
    """Fill in a template of this package; whatever is no `Markup` is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"subscripts": _subscripts, "figure": _figure}
    text = (resources.files(__package__) / "templates" / template).read_text("utf-8")
    return Markup(environment.from_string(text).render(values))


def best_median_worst(worst_first: Sequence[int]) -> dict[int, str]:
    """Return which of an order are shown, and as what: of one the best, of two no median.

    >>> best_median_worst([4, 2, 0, 3])
    {3: 'Best', 2: 'Median', 4: 'Worst'}
    """
    last = len(worst_first) - 1
    words = {last // 2: "Median", 0: "Worst", last: "Best"}  # the later holds, where two are one
    places = sorted(words, reverse=True) if worst_first else []
    return {worst_first[place]: words[place] for place in places}


def _subscripts(text: str) -> Markup:
    """Set V_rand and V_info as they are printed, V with a subscript; everything is escaped."""
    return Markup(re.sub(r"V_(rand|info)", r"V<sub>\1</sub>", str(escape(text))))


def _figure(value: Any) -> str:
    return f"{value:.4f}" if is_number(value) else "–"
