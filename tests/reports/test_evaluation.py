import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from unet_repro.errors import InputError
from unet_repro.metrics import em_challenge_metrics
from unet_repro.reports import evaluation

KEYS = ("pixel_error", "rand_error", "warping_error", "v_rand", "v_info", "pixel_accuracy")


def grid_of_cells(n_slices: int, side: int = 48) -> np.ndarray:
    """Cells of 14 × 14 px with 2 px of membrane between them, the same in every slice."""
    inside = np.arange(side) % 16 >= 2
    labels = np.zeros((n_slices, side, side), np.uint8)
    labels[:, inside[:, None] & inside] = 255
    return labels


@pytest.fixture(scope="module")
def stack() -> tuple[np.ndarray, np.ndarray]:
    """Three slices: one merger, then all membranes gone in the middle, then a perfect one."""
    labels = grid_of_cells(3)
    probability = np.where(labels > 0, 0.85, 0.15).astype(np.float32)
    probability[0, 4:12, 16:18] = 0.85
    probability[1, 2:46, 2:46] = 0.85
    return labels, probability


@pytest.fixture(scope="module")
def evaluated(stack: tuple[np.ndarray, np.ndarray]) -> dict:
    return evaluation.evaluate_em(*stack, numbers=range(25, 25 + len(stack[0])))


def test_evaluation_holds_the_official_figures(evaluated: dict, stack: tuple) -> None:
    result = em_challenge_metrics(*stack)
    assert evaluated["figures"] == result.as_dict()
    assert set(KEYS) <= set(evaluated["curves"])
    assert len(evaluated["curves"]["thresholds"]) == len(evaluated["curves"]["v_rand"]) == 11
    assert len(evaluated["curves"]["warping_error"]) == 10
    assert [row["slice"] for row in evaluated["slices"]] == [25, 26, 27]
    assert all(set(KEYS) < set(row) for row in evaluated["slices"])


def test_slices_are_scored_at_the_stack_s_best_threshold(evaluated: dict, stack: tuple) -> None:
    labels, probability = stack
    wrong = (labels > 0) != (probability > evaluated["figures"]["pixel_accuracy_threshold"])
    assert [row["pixel_accuracy"] for row in evaluated["slices"]] == pytest.approx(
        1 - wrong.mean(axis=(1, 2))
    )


def test_undefined_figures_are_null_in_json(stack: tuple) -> None:
    labels, probability = (array.copy() for array in stack)
    labels[2] = 0
    result = evaluation.evaluate_em(labels, probability)
    assert result["slices"][2]["v_rand"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert evaluation.worst_first(result["slices"])[0] == 2


def test_worst_slice_comes_first_and_equal_v_rand_is_ordered_by_accuracy(evaluated: dict) -> None:
    assert evaluation.worst_first(evaluated["slices"]) == [1, 0, 2]
    rows = [{"v_rand": 0.9, "pixel_accuracy": a} for a in (0.95, 0.93, None, 0.94)]
    assert evaluation.worst_first(rows) == [2, 1, 3, 0]


def lines_by_name(text: str) -> dict[str, list[str]]:
    """Return the columns of the table's rows: those are two spaces apart."""
    rows = [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if row}


def test_table_shows_values_thresholds_and_the_published_figures(evaluated: dict) -> None:
    figures = evaluated["figures"] | {"warping_error": 0.0001234, "warping_error_threshold": 0.3}
    text = evaluation.table(evaluated | {"figures": figures})
    rows = lines_by_name(text)
    assert rows["figure"] == ["value", "threshold", "u-net 2015", "human", "better"]
    assert rows["warping error"] == ["0.000123", "0.3", "0.000353", "0.000005", "lower"]
    assert rows["Rand error"][2:] == ["0.0382", "0.0021", "lower"]
    assert rows["pixel error"][2:] == ["0.0611", "0.0010", "lower"]
    found = [f"{figures['v_rand']:.4f}", f"{figures['v_rand_threshold']:.1f}"]
    assert rows["V_rand"] == [*found, "0.97276", "–", "higher"]
    assert rows["V_info"][2] == "0.98662"
    assert rows["pixel accuracy at 0.5"][0] == f"{figures['pixel_accuracy_at_half']:.4f}"


def test_table_tells_splits_from_mergers(evaluated: dict) -> None:
    curves, figures = evaluated["curves"], evaluated["figures"]
    merge = curves["v_rand_merge"][curves["thresholds"].index(figures["v_rand_threshold"])]
    assert merge < 1
    text = evaluation.table(evaluated)
    assert "Split part of V_rand 1.0000" in text and f"merge part {merge:.4f}" in text
    assert "counts 0 split and " in text


def test_remark_says_whether_the_figures_compare(evaluated: dict) -> None:
    assert "not directly comparable" in evaluation.table(evaluated)
    text = evaluation.table(evaluated, is_test_set=True)
    assert "compare directly" in text and "not directly comparable" not in text


def test_table_without_a_figure_has_a_dash(evaluated: dict) -> None:
    rows = lines_by_name(evaluation.table(evaluated | {"figures": {"v_rand": None}}))
    assert rows["V_rand"][:2] == ["–", "–"] and rows["pixel error"][:2] == ["–", "–"]


def test_cells_are_evaluated_and_tabled_beside_table_2() -> None:
    result = evaluation.evaluate_cells(np.array([[1, 1, 0, 2]]), np.array([[7, 7, 7, 0]]))
    assert result["figures"] == pytest.approx({"iou": 1 / 3, "seg": 1 / 3})  # (2/3 + 0) / 2
    rows = lines_by_name(evaluation.table(result))
    assert rows["IOU"] == ["0.3333", "higher"] and rows["SEG"] == ["0.3333", "higher"]
    assert "PhC-U373 0.9203" in evaluation.table(result)
    assert "DIC-HeLa 0.7756" in evaluation.table(result)


def test_plot_is_a_picture_with_mergers_on_it(
    tmp_path: Path, stack: tuple, evaluated: dict
) -> None:
    path = tmp_path / "plot.png"
    evaluation.plot_evaluation(*stack, evaluated, path)
    picture = imagecodecs.png_decode(path.read_bytes())[..., :3]
    assert picture.shape[1] > picture.shape[0] > 500
    red = bytes.fromhex("d8001d")
    is_merger = (picture == list(red)).all(axis=-1)
    legend_only = is_merger.copy()
    legend_only[: -picture.shape[0] // 10] = False
    assert is_merger.sum() > 5 * legend_only.sum() > 0


def test_plot_refuses_an_evaluation_of_other_slices(
    tmp_path: Path, stack: tuple, evaluated: dict
) -> None:
    labels, probability = stack
    with pytest.raises(InputError, match="of 3 slices, the labels of 2"):
        evaluation.plot_evaluation(labels[:2], probability[:2], evaluated, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_slices_of_several_sizes_are_evaluated_and_drawn(stack: tuple, tmp_path: Path) -> None:
    labels, probability = ([*part[:2], part[2, :32]] for part in stack)
    result = evaluation.evaluate_em(labels, probability)
    assert result["figures"] == em_challenge_metrics(labels, probability).as_dict()
    assert len(result["slices"]) == 3
    evaluation.plot_evaluation(labels, probability, result, tmp_path / "plot.png")
    assert imagecodecs.png_decode((tmp_path / "plot.png").read_bytes()).ndim == 3
    cells = evaluation.evaluate_cells(labels, [labels[0], labels[1], 0 * labels[2]])
    assert cells["figures"]["iou"] == pytest.approx(2 / 3)  # one object a slice, as ids
