import base64

import imagecodecs
import numpy as np
import pytest
from matplotlib.figure import Figure

from unet_repro.reports import drawing
from unet_repro.reports.drawing import ERROR_COLOURS, Line

CELL, MEMBRANE = 1.0, 0.0


def has_colour(overlay: np.ndarray, error: str) -> np.ndarray:
    return (overlay == list(bytes.fromhex(ERROR_COLOURS[error][1:]))).all(axis=-1)


@pytest.fixture
def two_cells() -> np.ndarray:
    """Two cells of 20 × 18 px, 2 px of membrane between and around them."""
    labels = np.zeros((24, 42), np.uint8)
    labels[2:22, 2:20] = 255
    labels[2:22, 22:40] = 255
    return labels


def test_perfect_segmentation_has_no_error_colour(two_cells: np.ndarray) -> None:
    probability = (two_cells > 0).astype(np.float32)
    overlay = drawing.error_overlay(two_cells, probability, 0.5)
    assert (overlay[two_cells > 0] == 250).all() and (overlay[two_cells == 0] == 15).all()


def test_hole_in_the_membrane_is_missed_membrane_and_a_merger(two_cells: np.ndarray) -> None:
    probability = (two_cells > 0).astype(np.float32)
    probability[3:21, 20:22] = CELL
    overlay = drawing.error_overlay(two_cells, probability, 0.5)
    is_merger = has_colour(overlay, "merger")
    assert is_merger.any() and not is_merger[:, :16].any() and not is_merger[:, 26:].any()
    assert has_colour(overlay, "missed membrane").sum() <= 18 * 2
    assert not has_colour(overlay, "split").any()
    assert not has_colour(overlay, "false membrane").any()


def test_membrane_through_a_cell_is_false_membrane_and_a_split(two_cells: np.ndarray) -> None:
    probability = (two_cells > 0).astype(np.float32)
    probability[12, 2:20] = MEMBRANE
    overlay = drawing.error_overlay(two_cells, probability, 0.5)
    assert has_colour(overlay, "split").any()
    is_false = has_colour(overlay, "false membrane")
    assert is_false.any() and not np.delete(is_false, 12, axis=0).any()
    assert not has_colour(overlay, "merger").any()
    assert not has_colour(overlay, "missed membrane").any()


def test_pixels_at_the_threshold_are_membrane() -> None:
    labels = np.full((8, 8), 255, np.uint8)
    overlay = drawing.error_overlay(labels, np.full((8, 8), 0.5, np.float32), 0.5)
    assert has_colour(overlay, "false membrane").all()


def test_objects_that_touch_at_a_corner_get_two_colours() -> None:
    labels = np.array([[1, 0], [0, 1]])
    painted = drawing.coloured_objects(labels)
    assert (painted[labels == 0] == 0).all()
    assert (painted[0, 0] != painted[1, 1]).any()


def test_eight_bit_images_are_shown_as_they_are_and_others_stretched() -> None:
    image = np.array([[3, 90]], np.uint8)
    assert drawing.as_grey(image) is image
    assert drawing.as_grey(np.array([[1000, 1500, 2000]], np.uint16)).tolist() == [[0, 128, 255]]
    assert drawing.as_grey(np.full((2, 2), 7.5)).tolist() == [[0, 0], [0, 0]]


def test_png_address_holds_the_pixels() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    head, _, data = drawing.png_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert (imagecodecs.png_decode(base64.b64decode(data)) == image).all()


def test_errors_get_a_logarithmic_axis_unless_one_is_zero() -> None:
    def scale(y: list[float], is_error: bool = True) -> str:
        axes = Figure().subplots()
        line = Line(x=[0.0, 0.1], y=y, best=(0.1, y[1]))
        drawing.draw_over_thresholds(axes, {"": line}, is_error=is_error)
        return axes.get_yscale()

    assert scale([0.5, 0.01]) == scale([np.nan, 0.01]) == "log"
    assert scale([0.5, 0.0]) == scale([np.nan, np.nan]) == "linear"
    assert scale([0.5, 0.01], is_error=False) == "linear"


def test_svg_is_bare_and_takes_the_page_s_colours() -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    drawing.draw_over_thresholds(
        axes, {"a < b": Line([0, 1], [1, 2]), "c": Line([0, 1], [2, np.nan])}, is_error=False
    )
    element = drawing.svg(figure, 'a "better" < b')
    assert element.startswith("<svg") and element.rstrip().endswith("</svg>")
    head = element[: element.index(">")]
    assert "viewBox=" in head and " width=" not in head and " height=" not in head
    assert """ role="img" aria-label='a "better" &lt; b'""" in head
    assert "var(--blue)" in element and "var(--muted)" in element and drawing.BLUE not in element
    assert "a &lt; b" in element and "<metadata>" not in element
