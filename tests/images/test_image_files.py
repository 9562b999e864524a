"""Which files of a folder are images, and what a file is: its content decides, and no name."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_repro.errors import InputError
from unet_repro.images.image_files import image_files, image_header, open_file, read_image
from unet_repro.images.stacks import read_stack

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12), np.uint8)


def content(form):
    file = io.BytesIO()
    if form == "TIFF":
        tifffile.imwrite(file, IMAGE, photometric="minisblack")
    else:
        Image.fromarray(IMAGE).save(file, form)
    return file.getvalue()


def test_folder_of_three_formats_is_in_natural_order(tmp_path):
    for name in ("10.png", "2.JPEG", "1.TIF", "3.jpg"):
        form = {"png": "PNG", "tif": "TIFF"}.get(name.lower().partition(".")[2], "JPEG")
        (tmp_path / name).write_bytes(content(form))
    assert [file.name for file in image_files(tmp_path)] == ["1.TIF", "2.JPEG", "3.jpg", "10.png"]
    jpeg = np.asarray(Image.open(tmp_path / "3.jpg"))
    np.testing.assert_array_equal(read_stack(tmp_path), np.stack([IMAGE, jpeg, jpeg, IMAGE]))
    np.testing.assert_array_equal(read_image(tmp_path / "3.jpg"), jpeg)


@pytest.mark.parametrize(
    "name",
    ["2.bmp", "2.GIF", "b.webp", "2.npy", "s.nd2", "v.nii.gz", "2.tif.gz", "2.jp2", "c.zarr"],
)
def test_image_that_is_not_read_is_refused_by_name(tmp_path, name):
    (tmp_path / "1.png").write_bytes(content("PNG"))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"holds {name} beside what is read"):
        read_stack(tmp_path)
    (tmp_path / "z.BMP").write_bytes(b"")
    with pytest.raises(InputError, match=f"holds {name} and 1 more beside"):
        image_files(tmp_path)


def test_what_is_no_image_is_passed_over(tmp_path):
    (tmp_path / "1.png").write_bytes(content("PNG"))
    for name in ("notes.txt", ".2.bmp", "Thumbs.db", "1.json", "README", "labels.csv.gz", "x.xml"):
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / "masks").mkdir()
    assert [file.name for file in image_files(tmp_path)] == ["1.png"]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.JPG", "a.jpeg"), ("a.tif", "a.jpg")])
def test_two_files_of_one_stem_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="holds both a"):
        image_files(tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_wrong_suffix_is_told_with_the_right_one(tmp_path, form, suffix):
    right = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif"}[form]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content(form))
    if suffix == right:
        assert read_stack(path).shape == (1, 9, 12)
        return
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=rf"its format is {form}, not .*; name it a\{right}$"):
            read_stack(place)


def test_unknown_suffix_says_nothing(tmp_path):
    for form in ("PNG", "TIFF"):
        (tmp_path / "a.image").write_bytes(content(form))
        np.testing.assert_array_equal(read_stack(tmp_path / "a.image")[0], IMAGE)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png"])
def test_other_formats_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(content("GIF"))
    with pytest.raises(InputError, match="its format is GIF; convert it to TIFF, PNG or JPEG"):
        read_stack(tmp_path / name)


def test_one_image_has_the_axes_of_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(IMAGE))
    for axes in (None, "YX", "ZYX"):
        assert open_file(tmp_path / "a.png", axes=axes).shape == (1, 9, 12)
        assert image_header(tmp_path / "a.png", axes=axes)[0] == (9, 12)
    for read in (open_file, image_header):
        with pytest.raises(InputError, match="of axes YX or ZYX; TZYX are asked for"):
            read(tmp_path / "a.png", axes="TZYX")
