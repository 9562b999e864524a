"""TIFF files with any content whatever: every tag, link and byte can be a lie."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import imagecodecs
import numpy as np
import tifffile

SIZES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii",
         11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}  # fmt: skip
ODD_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
COMPRESSIONS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 32766, 32771, 32773, 32809, 32895, 32946, 33003, 33004),
    *(33005, 33007, 34661, 34676, 34677, 34712, 34713, 34718, 34719, 34887, 34892, 34925, 34926),
    *(34927, 34933, 34934, 48124, 50000, 50001, 50002, 50013, 52546, 65000, 65535),
)
WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR, DESCRIPTION = 256, 257, 258, 259, 262, 270
OFFSETS, SAMPLES, ROWS, COUNTS, PLANES = 273, 277, 278, 279, 284
PREDICTOR, COLOURS, TILE_WIDTH, TILE_HEIGHT = 317, 320, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUBIFDS, EXTRA, FORMAT = 324, 325, 330, 338, 339
# Tags that make tifffile take a file for one of a microscope or a program, with rules of its own
FLAVOURS = (33628, 33629, 33630, 33631, 34412, 43314, 34680, 34682, 33471, 65420, 33445, 33446,
            33550, 33560, 34118, 34361, 50838, 50839, 51123, 305, 306, 315, 347, 65426,
            65449)  # fmt: skip
LIES = (
    "ImageJ=1.53t\nimages=4\nslices=4\nloop=false\nmode=grayscale",
    "ImageJ=1.53t\nimages=1000000000\nslices=1000000000\n",
    "ImageJ=1.53t\nimages=-3\nslices=-3\nspacing=nan\nunit=\\u00B5m\nfinterval=inf",
    "ImageJ=1.53t\nimages=2\nchannels=2\nhyperstack=true\nmode=composite",
    "ImageJ=1.53t\nimages=x\nspacing=\nunit=\x1b[31m\nmin=a",
    "ImageJ=",
    '{"shape": [4, 24, 24], "axes": "ZYX"}',
    '{"shape": [1000000, 1000000], "axes": "YX"}',
    '{"shape": [-1, 24], "spacing": "wide", "unit": 7}',
    '{"shape": "all"}',
    '{"shape": [0]}',
    "shape=(3, -1, 99999999999999999999)",
    "{" * 5000,
    '{"shape": ' + "[" * 2000 + "]" * 2000 + "}",
    "SCANIMAGE.SI.hChannels.channelSave = [1;2;3]\nstate.acq.numberOfFrames=9",
    "<MetaData><PlaneInfo></PlaneInfo></MetaData>",
    "Aperio Image Library\r\n24x24 |AppMag=x",
    "\xff\xfe\x00",
    "",
)
OTHERS = ("../other.tif", "other.tif", "/etc/passwd")  # files that OME metadata name
OME = """<?xml version="1.0"?>{doctype}<OME
xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0"
DimensionOrder="{order}" Type="{dtype}" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="{c}"
SizeT="{t}" PhysicalSizeX="{scale}" PhysicalSizeY="{scale}" PhysicalSizeXUnit="{unit}">{data}
</Pixels></Image></OME>"""


@dataclass
class Page:
    """A directory: tag → (type, values), and the strips or tiles that its offsets point to."""

    tags: dict[int, tuple[int, Any]]
    segments: list[bytes]
    raw: list[tuple[int, int, int, bytes]] = field(default_factory=list)  # code, type, count, value
    link: str = "next"


def grey_pages(random: Random, *, n: int, side: int = 24, is_labels: bool = False) -> list[Page]:
    """Return pages that are all right: strips or tiles, of any dtype and any common scheme."""
    dtype = np.dtype(random.choice(("u1", "u1", "u1", "u2", "u4", "i2", "f4", "f8", "f2", "u8")))
    if is_labels:
        dtype = np.dtype(random.choice(("u1", "u1", "u2", "i4")))
    scheme = random.choice((1, 1, 5, 8, 32773, 50000))
    tile = random.choice((0, 0, 16))
    rows = random.choice((side, 5, 16))
    pages = []
    for _ in range(n):
        y, x = np.mgrid[:side, :side]
        image = ((y // 8 + x // 8) % 2 * random.randint(1, 100)).astype(dtype)
        if tile:
            wide = np.pad(image, ((0, -side % tile),) * 2)
            steps = range(0, len(wide), tile)
            parts = [wide[i : i + tile, j : j + tile] for i in steps for j in steps]
        else:
            parts = [image[i : i + rows] for i in range(0, side, rows)]
        tags: dict[int, tuple[int, Any]] = {
            WIDTH: (4, [side]),
            HEIGHT: (4, [side]),
            BITS: (3, [8 * dtype.itemsize]),
            COMPRESSION: (3, [scheme]),
            COLOUR: (3, [1]),
            SAMPLES: (3, [1]),
            FORMAT: (3, [{"u": 1, "i": 2, "f": 3}[dtype.kind]]),
        }
        if tile:
            tags |= {TILE_WIDTH: (3, [tile]), TILE_HEIGHT: (3, [tile])}
        else:
            tags |= {ROWS: (4, [rows])}
        pages.append(Page(tags, [_encoded(part.tobytes(), scheme) for part in parts]))
    return pages


def _encoded(content: bytes, scheme: int) -> bytes:
    encoder: dict[int, Callable[..., bytes]] = {
        5: imagecodecs.lzw_encode,
        8: zlib.compress,
        32773: imagecodecs.packbits_encode,
        50000: imagecodecs.zstd_encode,
    }
    return bytes(encoder[scheme](content)) if scheme in encoder else content


def assemble(pages: list[Page], *, big: bool = False, order: str = "<") -> bytes:
    """Write pages one after the other; offsets and byte counts are filled in where none is given.

    The link of a page leads to the ``next`` one, to it``self``, to the ``first``, ``out`` of the
    file or into the ``middle`` of something.
    """
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0))
    )
    body = bytearray(head)
    link_at = 8 if big else 4
    pointer, count_form, inline = ("Q", "Q", 8) if big else ("I", "I", 4)
    first = None
    for page in pages:
        places = []
        for segment in page.segments:
            places.append(len(body))
            body += segment
        tags = dict(page.tags)
        is_tiled = TILE_WIDTH in tags
        sizes = [len(segment) for segment in page.segments]
        tags.setdefault(TILE_OFFSETS if is_tiled else OFFSETS, (4, places))
        tags.setdefault(TILE_COUNTS if is_tiled else COUNTS, (4, sizes))
        entries = list(page.raw)
        for code, (kind, values) in tags.items():
            content = _packed(kind, values, order)
            size = struct.calcsize("<" + SIZES[kind])
            entries.append((code, kind, len(content) // size, content))
        written = []
        for code, kind, count, content in sorted(entries, key=lambda entry: entry[0]):
            value = content.ljust(inline, b"\0")
            if len(content) > inline:
                value = struct.pack(order + pointer, len(body))
                body += content
            written.append(struct.pack(order + "HH" + count_form, code, kind, count) + value)
        here = len(body)
        first = here if first is None else first
        struct.pack_into(order + pointer, body, link_at, here)
        body += struct.pack(order + ("Q" if big else "H"), len(written)) + b"".join(written)
        link_at = len(body)
        target = {"self": here, "first": first, "out": 2**31, "middle": here // 2}.get(page.link, 0)
        body += struct.pack(order + pointer, target)
        if page.link != "next":
            break
    return bytes(body)


def _packed(kind: int, values: Any, order: str) -> bytes:
    if isinstance(values, bytes):
        return values
    if isinstance(values, str):
        return values.encode("latin-1", "replace") + b"\0"
    form, largest = SIZES[kind], {1: 0xFF, 3: 0xFFFF, 4: 0xFFFFFFFF}.get(kind, 2**63 - 1)
    clipped = [min(int(value), largest) if form in "BHIQ" else value for value in values]
    return struct.pack(f"{order}{len(clipped)}{form[0]}", *clipped)


def _spoil_tag(random: Random, page: Page) -> None:
    """Change one thing that a directory says."""
    n = len(page.segments)
    number = random.choice(ODD_NUMBERS)
    is_tiled = TILE_WIDTH in page.tags
    offsets, counts = (TILE_OFFSETS, TILE_COUNTS) if is_tiled else (OFFSETS, COUNTS)
    changes: list[dict[int, tuple[int, Any]]] = [
        {WIDTH: (4, [number])},
        {HEIGHT: (4, [number])},
        {WIDTH: (4, [number]), HEIGHT: (4, [random.choice(ODD_NUMBERS)])},
        {BITS: (3, [random.choice((0, 1, 2, 4, 7, 10, 12, 14, 24, 31, 64, 128, 65535))])},
        {BITS: (3, [8] * random.choice((2, 3, 300)))},
        {FORMAT: (3, [random.choice((0, 1, 2, 3, 4, 5, 6, 7, 65535))])},
        {BITS: (3, [random.choice((16, 32, 64, 128))]), FORMAT: (3, [random.choice((3, 5, 6))])},
        {SAMPLES: (3, [random.choice((0, 2, 3, 4, 5, 65535))])},
        {SAMPLES: (3, [3]), BITS: (3, [8, 8, 8]), COLOUR: (3, [2])},
        {PLANES: (3, [random.choice((0, 2, 3, 9))])},
        {SAMPLES: (3, [3]), PLANES: (3, [2])},
        {COLOUR: (3, [random.choice((0, 2, 3, 4, 5, 6, 8, 32803, 34892, 65535))])},
        {COLOUR: (3, [3]), COLOURS: (3, [7] * random.choice((0, 3, 255, 768)))},
        {COMPRESSION: (3, [random.choice(COMPRESSIONS)])},
        {ROWS: (4, [number])},
        {TILE_WIDTH: (4, [number])},
        {TILE_HEIGHT: (4, [number])},
        {TILE_WIDTH: (3, [16]), TILE_HEIGHT: (3, [random.choice((0, 1, 15, 65535))])},
        {offsets: (4, [number] * n)},
        {counts: (4, [number] * n)},
        {offsets: (16, [random.choice((2**63 - 1, 2**62, 8))] * n)},
        {counts: (16, [2**63 - 1] * n)},
        {offsets: (4, [8] * random.choice((0, 1, 2, 5000)))},
        {counts: (3, [1] * random.choice((0, 1, 2, 5000)))},
        {counts: (11, [float("nan")] * n)},
        {PREDICTOR: (3, [random.choice((0, 2, 3, 4, 34892, 34893, 34894, 65535))])},
        {266: (3, [2])},
        {EXTRA: (3, [random.choice((0, 1, 2, 9))] * random.choice((1, 5)))},
        {DESCRIPTION: (2, random.choice(LIES))},
        {DESCRIPTION: (2, _ome(random))},
        {DESCRIPTION: (2, _ome(random))},
        {DESCRIPTION: (2, "x" * random.choice((10_000, 3_000_000)))},
        {SUBIFDS: (random.choice((4, 13)), [random.choice((8, 50, 100, 2**31))])},
        {random.choice(FLAVOURS): (random.choice((1, 2, 4, 7)), bytes(random.randbytes(40)))},
        {random.choice(FLAVOURS): (2, random.choice(LIES))},
        {282: (5, struct.pack("<II", 0, 0)), 283: (5, struct.pack("<II", 1, 0))},
        {282: (2, "abc"), 296: (3, [random.choice((0, 1, 3, 77))])},
        {254: (4, [random.choice((1, 2, 4, 2**32 - 1))])},
        {297: (3, [9, 9])},
        {32997: (4, [random.choice((0, 2, 2**31))])},
        {274: (3, [random.choice((0, 5, 9))])},
        {530: (3, [0, 0]), COLOUR: (3, [6])},
    ]
    choice = random.randrange(len(changes) + 4)
    if choice < len(changes):
        page.tags |= changes[choice]
        if choice % 3 == 0 and TILE_WIDTH in page.tags and TILE_HEIGHT not in page.tags:
            page.tags[TILE_HEIGHT] = (3, [16])
    elif choice == len(changes):
        page.tags.pop(random.choice(sorted(page.tags)))
    elif choice == len(changes) + 1:
        kind = random.choice((1, 2, 3, 4, 5, 12, 13, 16, 0, 99, 65535))
        code = random.choice((*page.tags, *FLAVOURS, random.randrange(65536)))
        page.raw.append((code, kind, random.choice(ODD_NUMBERS), random.randbytes(4)))
    elif choice == len(changes) + 2:
        scheme = random.choice(COMPRESSIONS)
        page.tags[COMPRESSION] = (3, [scheme])
        page.segments = [random.randbytes(random.choice((1, 9, 300))) for _ in page.segments]
    else:
        page.segments = [b"" for _ in page.segments]


def _ome(random: Random) -> str:
    def number() -> int | str:
        return random.choice((0, 1, 2, 4, 24, -1, 10**6, 10**30, "x", "1e3"))

    def axis() -> int | str:
        return random.choice((24, 24, 24, 24, number()))

    doctype = random.choice(("", "", "", _ENTITIES, '<!DOCTYPE a SYSTEM "file:///etc/passwd">'))
    data = random.choice(
        (
            "<TiffData/>",
            '<TiffData IFD="0" PlaneCount="2"/>',
            '<TiffData IFD="99999" FirstZ="-7"/>',
            *(f'<TiffData IFD="0"><UUID FileName="{name}">u</UUID></TiffData>' for name in OTHERS),
            '<BinData Length="9">AAAA</BinData>',
            "<Channel/>" * 9,
            "&lol;",
            "",
        )
    )
    return OME.format(
        doctype=doctype,
        order=random.choice(("XYZCT", "XYCZT", "XYTZC", "ZZZZZ", "")),
        dtype=random.choice(("uint8", "uint16", "float", "double", "complex", "bit", "text")),
        x=axis(), y=axis(), z=number(), c=random.choice((1, 1, number())),
        t=random.choice((1, 1, number())),
        scale=random.choice(("0.5", "0", "-1", "nan", "1e400", "µ")),
        unit=random.choice(("µm", "nm", "reference frame", "<", "pixel")),
        data=data,
    )  # fmt: skip


_ENTITIES = (
    '<!DOCTYPE l [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {n} "{f"&{p};" * 10}">' for p, n in zip("abcdefgh", "bcdefghi"))
    + '<!ENTITY lol "&i;&i;">]>'
)


def _bomb(random: Random, side: int) -> list[Page]:
    """Return a page whose strip inflates to far more than it should, or should be enormous."""
    scheme = random.choice((8, 5, 50000, 32773, 34925))
    content = bytes(random.choice((10**5, 3 * 10**7)))
    if scheme == 34925:
        encoded = imagecodecs.lzma_encode(content)
    elif scheme == 32773:  # 128 times 0; imagecodecs would take minutes
        encoded = b"\x81\x00" * (len(content) // 128)
    else:
        encoded = _encoded(content, scheme)
    width = random.choice((side, side, 30_000, 2**17, 2**31 - 1))
    tags: dict[int, tuple[int, Any]] = {
        WIDTH: (4, [width]), HEIGHT: (4, [width]), BITS: (3, [8]), COMPRESSION: (3, [scheme]),
        COLOUR: (3, [1]), SAMPLES: (3, [1]), ROWS: (4, [width]),
    }  # fmt: skip
    return [Page(tags, [bytes(encoded)])]


def _by_tifffile(random: Random, is_labels: bool) -> bytes:
    """Return what tifffile writes, of many kinds."""
    dtype = random.choice(("u1", "u2", "f4")) if not is_labels else random.choice(("u1", "u2"))
    shape = random.choice(((24, 24), (2, 24, 24), (2, 24, 24, 3), (2, 3, 24, 24)))
    stack = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    options: dict[str, Any] = {}
    kind = random.choice(("imagej", "ome", "shaped", "plain"))
    if kind == "imagej" and shape[-1] == 3:
        stack = stack.astype("u1")
    if kind == "imagej":
        options = {"imagej": True, "metadata": {"spacing": 2.0, "unit": "um", "Info": "é\x1b[2J"}}
    elif kind == "ome":
        options = {"ome": True}
    elif kind == "plain":
        options = {"metadata": None}
    if random.random() < 0.5 and kind != "imagej":
        options |= {"tile": (16, 16)}
    if random.random() < 0.3 and kind != "imagej":
        schemes = ("zlib", "lzw", "zstd", "packbits", "zlib" if dtype == "f4" else "jpeg2000")
        options |= {"compression": random.choice(schemes)}
    options["photometric"] = "rgb" if shape[-1] == 3 else "minisblack"
    file = io.BytesIO()
    tifffile.imwrite(file, stack, **options)
    return file.getvalue()


def hostile_tiff(random: Random, *, is_labels: bool = False, side: int = 24) -> bytes:
    """Return a TIFF file with something wrong about it, or with nothing wrong in a tenth."""
    kind = random.random()
    if kind < 0.12:
        content = _by_tifffile(random, is_labels)
        return content if random.random() < 0.3 else damaged(random, content)
    if kind < 0.17:
        return assemble(_bomb(random, side))
    pages = grey_pages(random, n=random.choice((1, 2, 2, 4)), side=side, is_labels=is_labels)
    if kind < 0.25:
        return damaged(random, assemble(pages))
    if kind < 0.29:
        pages += grey_pages(random, n=1, side=random.choice((24, 23)))
    if kind < 0.33:
        pages[-1].link = random.choice(("self", "first", "out", "middle"))
    elif kind < 0.9:
        for _ in range(random.choice((1, 1, 2, 3))):
            of_all = random.random() < 0.5
            spoiled = random.randrange(len(pages))
            state = random.getstate()
            for i, page in enumerate(pages):
                if of_all:
                    random.setstate(state)
                if of_all or i == spoiled:
                    _spoil_tag(random, page)
    content = assemble(pages, big=random.random() < 0.2, order=random.choice("<<>"))
    return content if random.random() < 0.9 else damaged(random, content)


def damaged(random: Random, content: bytes) -> bytes:
    """Cut a file short, or change, remove, repeat or insert a few of its bytes."""
    if not content:
        return content
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.choice(
            (random.randrange(len(content) + 1), random.randrange(min(len(content), 400) + 1))
        )
        length = random.choice((1, 2, 4, 100))
        new = {
            "cut": b"",
            "change": random.choice((random.randbytes(length), b"\xff" * length, bytes(length))),
            "insert": random.randbytes(length),
            "remove": b"",
            "repeat": content[at : at + length] * 2,
        }
        kind = random.choice(tuple(new))
        rest = b"" if kind == "cut" else content[at + (0 if kind == "insert" else length) :]
        content = content[:at] + new[kind] + rest
        if not content:
            break
    return content


def directory_ends(content: bytes) -> list[int]:
    """Return where each entry of each directory of a classic little-endian TIFF ends."""
    ends, (at,) = [], struct.unpack_from("<I", content, 4)
    while at:
        (n,) = struct.unpack_from("<H", content, at)
        ends += [at + 2 + 12 * i for i in range(n + 1)]
        (at,) = struct.unpack_from("<I", content, at + 2 + 12 * n)
    return ends
