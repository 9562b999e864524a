"""Sequences of the Cell Tracking Challenge: unknown cells are never background."""

import numpy as np
import pytest
import tifffile

from unet_repro.challenges.ctc import largest_reach_px, read_ctc_sequence, write_ctc_result
from unet_repro.errors import InputError

SHAPE = (20, 30)


def frame(*boxes, dtype="uint16"):
    """Draw (number, y, x, size) squares."""
    image = np.zeros(SHAPE, dtype)
    for number, y, x, size in boxes:
        image[y : y + size, x : x + size] = number
    return image


MASKS = {1: frame((5, 2, 2, 6), (9, 10, 15, 6)), 3: frame((1, 2, 2, 6))}
MARKERS = {0: frame((1, 4, 4, 2)), **dict.fromkeys((1, 3), frame((1, 4, 4, 2), (2, 12, 17, 2)))}


@pytest.fixture
def folder(tmp_path):
    for name in ("01", "01_GT/SEG", "01_GT/TRA"):
        (tmp_path / name).mkdir(parents=True)
    for t in range(4):
        tifffile.imwrite(tmp_path / f"01/t{t:03d}.tif", np.full(SHAPE, t, np.uint8))
    for t, mask in MASKS.items():
        tifffile.imwrite(tmp_path / f"01_GT/SEG/man_seg{t:03d}.tif", mask, compression="lzw")
    for t, marker in MARKERS.items():
        tifffile.imwrite(tmp_path / f"01_GT/TRA/man_track{t:03d}.tif", marker)
    (tmp_path / "01_GT/TRA/man_track.txt").write_text("1 0 3 0\n")
    return tmp_path


def test_masks_go_with_their_images(folder):
    sequence = read_ctc_sequence(folder, "01")
    assert sequence.name == "01"
    assert sequence.digits == ("000", "001", "002", "003")
    assert sequence.images.shape == (4, *SHAPE)
    assert sequence.frames == (1, 3)
    np.testing.assert_array_equal(sequence.annotated_images[:, 0, 0], [1, 3])
    np.testing.assert_array_equal(sequence.labels[0], MASKS[1])
    np.testing.assert_array_equal(sequence.labels[1], MASKS[3])


def test_silver_truth_lies_in_a_folder_of_its_own(folder):
    with pytest.raises(InputError, match="01_ST/SEG: no such folder"):
        read_ctc_sequence(folder, "01", truth="silver")
    (folder / "01_ST/SEG").mkdir(parents=True)
    tifffile.imwrite(folder / "01_ST/SEG/man_seg002.tif", MASKS[1])
    tifffile.imwrite(folder / "01_GT/TRA/man_track002.tif", MARKERS[1])
    silver = read_ctc_sequence(folder, "01", truth="silver")
    assert silver.frames == (2,) and silver.is_complete == (True,)
    np.testing.assert_array_equal(silver.labels[0], MASKS[1])


def test_all_of_a_complete_frame_is_known_and_of_another_the_masks_only(folder):
    sequence = read_ctc_sequence(folder, "01")
    assert sequence.is_complete == (True, False)  # numbers need not be those of the markers
    assert sequence.is_known[0].all()
    np.testing.assert_array_equal(sequence.is_known[1], MASKS[3] > 0)


def test_reach_of_unknown_cells_can_be_limited(folder):
    sequence = read_ctc_sequence(folder, "01", unknown_radius_px=5)
    y, x = np.mgrid[:20, :30]
    to_marker = np.hypot(y - np.clip(y, 12, 13), x - np.clip(x, 17, 18))
    np.testing.assert_array_equal(sequence.is_known[1], (to_marker > 5) | (MASKS[3] > 0))
    assert sequence.is_known[0].all()


def test_reach_of_unknown_cells_can_be_measured_on_the_masks(folder):
    # masks 2...7 and 10...15, 15...20; markers 4...5 and 12...13, 17...18: sqrt(2² + 2²) < 3
    measured = read_ctc_sequence(folder, "01", unknown_radius_px="measured")
    given = read_ctc_sequence(folder, "01", unknown_radius_px=3)
    np.testing.assert_array_equal(measured.is_known, given.is_known)
    assert not measured.is_known.all()


def test_reach_is_that_of_the_farthest_mask_from_its_own_marker():
    label, marker = frame((4, 2, 2, 6), (9, 10, 15, 6)), frame((1, 2, 2, 1), (2, 15, 20, 1))
    corner = np.hypot(5, 5)  # from a corner of either square to the opposite one
    assert largest_reach_px([(label, marker)]) == np.ceil(corner) == 8
    assert largest_reach_px([(label, marker), (label, frame((1, 4, 4, 1)))]) == 8
    assert largest_reach_px([(label, frame((1, 18, 1, 2)))]) is None  # lies on no mask
    assert largest_reach_px([]) is None


def test_results_are_written_as_the_challenge_reads_them(tmp_path):
    instances = frame((1, 2, 2, 6), (65535, 10, 15, 6), dtype="int32")
    write_ctc_result(tmp_path / "02_RES", "0042", instances)
    write_ctc_result(tmp_path / "02_RES", "0042", instances)  # again: replaced
    written = tifffile.imread(tmp_path / "02_RES/mask0042.tif")
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, instances)


@pytest.mark.parametrize("number", [-1, 65536])
def test_numbers_beyond_16_bits_are_refused(tmp_path, number):
    with pytest.raises(InputError, match=r"frame 007: instance numbers .* do not fit"):
        write_ctc_result(tmp_path, "007", frame((number, 2, 2, 6), dtype="int32"))
    assert not list(tmp_path.iterdir())


def test_mask_next_to_a_marker_does_not_count_and_one_that_is_empty_knows_nothing(folder):
    # As many masks as markers, but one marker lies on none: counting would call it complete.
    for mask in (frame((1, 2, 2, 6), (2, 2, 15, 6)), frame()):
        tifffile.imwrite(folder / "01_GT/SEG/man_seg003.tif", mask)
        sequence = read_ctc_sequence(folder, "01")
        assert sequence.is_complete == (True, False)
        np.testing.assert_array_equal(sequence.is_known[1], mask > 0)


def test_frame_without_markers_is_incomplete(folder):
    (folder / "01_GT/TRA/man_track001.tif").unlink()
    sequence = read_ctc_sequence(folder, "01", unknown_radius_px=5)
    assert not sequence.is_complete[0]
    np.testing.assert_array_equal(sequence.is_known[0], MASKS[1] > 0)


def test_without_any_marker_no_reach_can_be_measured(folder):
    for file in (folder / "01_GT/TRA").glob("*.tif"):
        file.unlink()
    (folder / "01_GT/TRA").rename(folder / "01_GT/NONE")
    sequence = read_ctc_sequence(folder, "01", unknown_radius_px="measured")
    assert sequence.is_complete == (False, False)
    np.testing.assert_array_equal(sequence.is_known, sequence.labels > 0)


def masks(name, values):
    return lambda folder: tifffile.imwrite(folder / "01_GT/SEG" / name, values)


def renamed(old, new):
    return lambda folder: (folder / old).rename(folder / new)


MASK = "01_GT/SEG/man_seg001.tif"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            masks("man_seg001.tif", np.zeros((20, 31), np.uint16)),
            r"man_seg001\.tif: is 20 × 31 but its image 20 × 30",
        ),
        (masks("man_seg001.tif", frame(dtype="float32")), "must be integers, not float32"),
        (renamed(MASK, "01_GT/SEG/man_seg007.tif"), r"man_seg007\.tif: there is no image t007"),
        (
            renamed(MASK, "01_GT/SEG/man_seg_001_004.tif"),
            r"man_seg_001_004\.tif: is not named man_segNNN\.tif",
        ),
        (renamed("01_GT/SEG", "01_GT/OLD"), "the instance masks belong there"),
        (renamed("01", "03"), "01: no such file or folder"),
        (
            masks("man_seg001.tif", frame().astype(np.int64) + 2**32),  # int32 would make it 0
            r"instance numbers 4294967296 to \d+ are not in 0 to 2\^31 - 1",
        ),
        (masks("man_seg001.tif", frame().astype(np.int16) - 1), "instance numbers -1 to"),
        (masks("man_seg0001.tif", frame()), r"is of the same frame as man_seg0*1\.tif; keep one"),
    ],
)
def test_bad_layout_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        read_ctc_sequence(folder, "01")


def test_unknown_cells_of_hela_frame_67_are_not_background(real_data):
    if not (real_data / "dic-hela").is_dir():
        pytest.skip("real data: UNET_REPRO_DATA holds no dic-hela/")
    sequence = read_ctc_sequence(real_data / "dic-hela", "01")
    index = sequence.frames.index(67)
    assert len(np.unique(sequence.labels[index])) == 1 + 3  # of 18 cells
    assert not sequence.is_complete[index]
    np.testing.assert_array_equal(sequence.is_known[index], sequence.labels[index] > 0)
    assert [f for f, ok in zip(sequence.frames, sequence.is_complete) if not ok] == [34, 39, 67]
