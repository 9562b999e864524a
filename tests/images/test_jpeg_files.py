"""JPEG files give what another decoder gives, or are refused where pixels are missing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_repro.errors import InputError, InputNote
from unet_repro.images.image_files import image_header
from unet_repro.images.jpeg_files import pixel_density
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import read_labels, read_stack

Y, X = np.mgrid[:70, :90]
SMOOTH = (np.sin(Y / 9) * 60 + np.cos(X / 11) * 60 + 120).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (70, 90), np.uint8)
KINDS = {
    "baseline": {"quality": 90},
    "progressive": {"quality": 60, "progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "one level": {"quality": 100, "optimize": True},
}


def jpeg(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **options)
    return file.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "a.JPG"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", [SMOOTH, NOISE, NOISE[:1, :1], SMOOTH[:17, :9]])
def test_grey_is_what_another_decoder_gives(file, kind, image):
    content = jpeg(image, **KINDS[kind])
    tifffile.imwrite(file.parent.parent / "s.tif", decoded(content), photometric="minisblack")
    expected = read_stack(file.parent.parent / "s.tif")
    file.write_bytes(content)
    np.testing.assert_array_equal(read_stack(file), expected)
    np.testing.assert_array_equal(read_stack(file.parent), expected)
    assert image_header(file) == (image.shape, np.uint8, ())
    file.write_bytes(jpeg(np.stack([image] * 3, -1), **KINDS[kind]))
    with pytest.warns(InputNote, match="stored as RGB; read as grey"):
        np.testing.assert_array_equal(read_stack(file), expected)


def test_colours(file):
    content = jpeg(np.stack([SMOOTH, NOISE, SMOOTH], -1))
    file.write_bytes(content)
    with pytest.raises(InputError, match="has colours, such as"):
        read_stack(file)
    with StackReader(file, channels=3) as reader:
        found = reader.read_region(0, slice(None), slice(None))
    np.testing.assert_array_equal(found, decoded(content).transpose(2, 0, 1))
    for image, n, words in (
        (SMOOTH, 3, "1 channel "),
        (np.stack([SMOOTH] * 4, -1), 1, "4 channel"),
    ):
        mode = {2: "L", 3: "CMYK"}[image.ndim]
        Image.frombytes(mode, (90, 70), image.tobytes()).save(file, "JPEG")
        cure = "3 are needed" if n == 3 else "a grey image is needed"
        with pytest.raises(InputError, match=rf"has {words}.*; {cure}"):
            StackReader(file, channels=n)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_truncated_is_refused_with_and_without_an_end(file, kind):
    content = jpeg(SMOOTH, **KINDS[kind])
    for end in [0, 2, 3, 10, 150, *range(200, len(content) - 2, 61), len(content) - 1]:
        file.write_bytes(content[:end])
        with pytest.raises(InputError, match=r"a\.JPG: ") as caught:
            read_stack(file)
        assert "\n" not in str(caught.value)
    for part in (0.2, 0.5, 0.8, 0.97):  # what libjpeg fills with grey
        file.write_bytes(content[: int(len(content) * part)] + b"\xff\xd9")
        with pytest.raises(InputError, match=r"a\.JPG: "):
            read_stack(file)


def test_what_follows_the_image_is_passed_over(file):
    file.write_bytes(jpeg(SMOOTH, comment=b"\xff\xd9 no end \xff\xda") + b"\xff\xd8 a preview")
    np.testing.assert_array_equal(read_stack(file)[0], decoded(file.read_bytes()))


def test_labels_are_noted(file):
    file.write_bytes(jpeg((SMOOTH > 120) * np.uint8(255)))
    with pytest.warns(InputNote, match="JPEG is lossy: labels saved so hold false values"):
        read_labels(file)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_is_dropped_with_a_word(file, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file.write_bytes(jpeg(SMOOTH, exif=exif))
    shape, _, notes = image_header(file)
    assert shape == SMOOTH.shape
    words = f"its Exif orientation ({orientation}) is dropped: the pixels are used as stored"
    assert notes == ((words,) if orientation > 1 else ())


def test_density(file):
    file.write_bytes(jpeg(SMOOTH, dpi=(300, 200)))
    assert pixel_density(file) == ((300, 200), 2)


@pytest.mark.parametrize(
    ("marker", "message"), [(0xC9, "arithmetic"), (0xC3, "lossless"), (0xFE, "how large it is")]
)
def test_rare_kinds_are_refused(file, marker, message):
    file.write_bytes(jpeg(SMOOTH).replace(b"\xff\xc0", bytes((0xFF, marker))))
    with pytest.raises(InputError, match=message):
        read_stack(file.parent)


def test_absurd_size_and_depth_are_refused_undecoded(file):
    content = jpeg(SMOOTH)
    frame = content.index(b"\xff\xc0") + 4
    for new, message in (
        (b"\x08\xff\xff\xff\xff", "65535 × 65535 px, which"),
        (b"\x08\0\0\0\x5a", "0 × 90 px"),
        (b"\x0c\0\x46\0\x5a", "of 12 bits"),
    ):
        file.write_bytes(content[:frame] + new + content[frame + 5 :])
        with pytest.raises(InputError, match=message):
            read_stack(file)
