"""Weight maps of folders whose images have several sizes: a file each, all decided together."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from unet_repro.errors import InputError
from unet_repro.images.calibration import read_info
from unet_repro.images.stacks import read_stack
from unet_repro.weight_maps import stack as module
from unet_repro.weight_maps.stack import write_weight_map
from unet_repro.weight_maps.weight_map import frequency_weights, weigh, weight_map

FILES = ("2.tif", "10.tif", "11.tif")  # the second is a PNG of labels


@pytest.fixture
def labels(tmp_path: Path) -> list[np.ndarray]:
    """Two cells that are both 1; two that touch; one. The first alone would be a mask."""
    images = [np.zeros(size, np.uint8) for size in ((20, 30), (25, 21), (9, 40))]
    images[0][5:15, 4:10] = images[0][5:15, 14:20] = 1
    images[1][5:15, 2:8], images[1][5:15, 8:14] = 1, 2
    images[2][2:5, 3:30] = 7
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "labels/2.tif", images[0], resolution=(3, 3))
    (tmp_path / "labels/10.png").write_bytes(imagecodecs.png_encode(images[1]))
    tifffile.imwrite(tmp_path / "labels/11.tif", images[2])
    return images


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 4])
def test_balance_and_meaning_are_those_of_all_images(labels, tmp_path, workers):
    out = tmp_path / "out"
    write_weight_map(tmp_path / "labels", out, progress=False, threads=workers)
    cells = sum(int((image > 0).sum()) for image in labels)
    balance = frequency_weights(sum(image.size for image in labels) - cells, cells)
    for name, image in zip(FILES, labels, strict=True):
        expected = weight_map(image, class_balance=balance, label_kind="ids")
        np.testing.assert_array_equal(tifffile.imread(out / name), expected)
    assert sorted(contents(out)) == sorted(FILES)
    with tifffile.TiffFile(out / "2.tif") as file:
        assert file.pages.first.tags.valueof("XResolution") == (3, 1)
    assert '"frequency"' in read_info(out / "11.tif")


def test_interrupted_and_resumed_equals_undisturbed(labels, tmp_path, monkeypatch):
    source, whole, out = (tmp_path / name for name in ("labels", "whole", "out"))
    write_weight_map(source, whole, progress=False)
    calls = []

    def stopping(stack, *reading, **options):
        calls.append(stack.shape[1:])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return weigh(stack, *reading, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "weigh", stopping)
        with pytest.raises(KeyboardInterrupt):
            write_weight_map(source, out, progress=False, threads=1)
        assert not out.exists()
        with pytest.raises(InputError, match="an unfinished run of it is there"):
            write_weight_map(source, out, progress=False)
        with pytest.raises(InputError, match=r"begun with settings\.w0"):
            write_weight_map(source, out, progress=False, resume=True, w0=3)
        calls[:] = calls[:1] + 9 * [()]
        write_weight_map(source, out, progress=False, resume=True, threads=1)
        again = calls[10:]  # the last one may have been weighed while the second one ended
        assert again in ([(25, 21)], [(25, 21), (9, 40)])  # the first is not weighed again
        assert contents(out) == contents(whole)
        write_weight_map(source, out, progress=False, resume=True)
        assert calls[10:] == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "out", "whole"]


def test_places_that_cannot_be_written_are_refused_first(labels, tmp_path):
    source, out = tmp_path / "labels", tmp_path / "out"
    for name in ("w.tif", "w.zarr"):
        with pytest.raises(InputError, match=r"one file cannot hold .* \(9 × 40 to 20 × 30\)"):
            write_weight_map(source, tmp_path / name, progress=False)
    with pytest.raises(InputError, match="would be among the files"):
        write_weight_map(source, source, progress=False, overwrite=True)
    out.mkdir()
    (out / "2.tif").write_text("mine")
    with pytest.raises(InputError, match="out: exists already"):
        write_weight_map(source, out, progress=False)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, which is none of the files"):
        write_weight_map(source, out, progress=False, overwrite=True)
    (out / "notes.txt").unlink()
    write_weight_map(source, out, progress=False, overwrite=True)
    assert [image.shape for image in read_stack(out)] == [image.shape for image in labels]
