"""TIFF files with any content whatever: every tag, link and byte can be a lie."""

from __future__ import annotations

import io
import struct
import zlib
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
# What one value of a tag can lie
ODD_SHORTS = {
    BITS: (0, 1, 2, 4, 7, 10, 12, 14, 24, 31, 64, 128, 65535),
    FORMAT: (0, 1, 2, 3, 4, 5, 6, 7, 65535),
    SAMPLES: (0, 2, 3, 4, 5, 65535),
    PLANES: (0, 2, 3, 9),
    COLOUR: (0, 2, 3, 4, 5, 6, 8, 32803, 34892, 65535),
    COMPRESSION: COMPRESSIONS,
    PREDICTOR: (0, 2, 3, 4, 34892, 34893, 34894, 65535),
    **{266: (2,), 274: (0, 5, 9)},
}
ODD_LONGS = (WIDTH, HEIGHT, ROWS, TILE_WIDTH, TILE_HEIGHT)
_IMAGEJ = "ImageJ=1.53t\nimages="
LIES = (
    _IMAGEJ + "4\nslices=4\nloop=false\nmode=grayscale",
    _IMAGEJ + "1000000000\nslices=1000000000\n",
    _IMAGEJ + "-3\nslices=-3\nspacing=nan\nunit=\\u00B5m\nfinterval=inf",
    _IMAGEJ + "2\nchannels=2\nhyperstack=true\nmode=composite",
    _IMAGEJ + "x\nspacing=\nunit=\x1b[31m\nmin=a",
    _IMAGEJ + "4\nslices=4\nunit=\\uD800\nyunit=\\u00B5m\nspacing=1e-999999999\nfinterval=1e300",
    _IMAGEJ + "4\nslices=4\nunit=nm\nyunit=nm\nzunit=in\nspacing=9e9\ntunit=min\nfinterval=-1",
    _IMAGEJ + "4\nslices=4\nunit=m\nzunit=" + "x" * 99 + "\nspacing=true\ntunit=\nfinterval=1/3",
    *('{"shape": [4, 24, 24], "axes": "ZYX"}', '{"shape": [1000000, 1000000], "axes": "YX"}'),
    *('{"shape": [-1, 24], "spacing": "wide", "unit": 7}', '{"shape": "all"}', '{"shape": [0]}'),
    *("shape=(3, -1, 99999999999999999999)", "{" * 5000),
    '{"shape": ' + "[" * 2000 + "]" * 2000 + "}",
    "SCANIMAGE.SI.hChannels.channelSave = [1;2;3]\nstate.acq.numberOfFrames=9",
    *("<MetaData><PlaneInfo></PlaneInfo></MetaData>", "Aperio Image Library\r\n24x24 |AppMag=x"),
    *("ImageJ=", "\xff\xfe\x00", ""),
)
OTHERS = ("../other.tif", "other.tif", "/etc/passwd")  # files that OME metadata name
OME = """<?xml version="1.0"?>{doctype}<OME
xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0"
DimensionOrder="{order}" Type="{dtype}" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="{c}"
SizeT="{t}" PhysicalSizeX="{scale}" PhysicalSizeY="{scale}" PhysicalSizeXUnit="{unit}">{data}
</Pixels></Image></OME>"""


Tags = dict[int, tuple[int, Any]]  # tag → (type, values)


@dataclass
class Page:
    """A directory, and the strips or tiles that its offsets point to."""

    tags: Tags
    segments: list[bytes]
    raw: list[tuple[int, int, int, bytes]] = field(default_factory=list)  # code, type, count, value
    link: str = "next"


def _tags(side: int, rows: int, scheme: int, bits: int = 8, form: int = 1) -> Tags:
    shorts = {BITS: bits, COMPRESSION: scheme, COLOUR: 1, SAMPLES: 1, FORMAT: form}
    longs = {WIDTH: side, HEIGHT: side, ROWS: rows}
    return {k: (3, [v]) for k, v in shorts.items()} | {k: (4, [v]) for k, v in longs.items()}


def grey_pages(random: Random, *, n: int, side: int = 24, is_labels: bool = False) -> list[Page]:
    """Return pages that are all right: strips or tiles, of any dtype and any common scheme."""
    dtypes = "u1 u1 u2 i4" if is_labels else "u1 u1 u1 u2 u4 i2 f4 f8 f2 u8"
    dtype = np.dtype(random.choice(dtypes.split()))
    scheme = random.choice((1, 1, 5, 8, 32773, 50000))
    tile, rows = random.choice((0, 0, 16)), random.choice((side, 5, 16))
    tags = _tags(side, rows, scheme, 8 * dtype.itemsize, "uif".index(dtype.kind) + 1)
    if tile:
        del tags[ROWS]
        tags |= {TILE_WIDTH: (3, [tile]), TILE_HEIGHT: (3, [tile])}
    pages = []
    for _ in range(n):
        y, x = np.mgrid[:side, :side]
        image = ((y // 8 + x // 8) % 2 * random.randint(1, 100)).astype(dtype)
        parts = [image[i : i + rows] for i in range(0, side, rows)]
        if tile:
            wide = np.pad(image, ((0, -side % tile),) * 2)
            steps = range(0, len(wide), tile)
            parts = [wide[i : i + tile, j : j + tile] for i in steps for j in steps]
        pages.append(Page(dict(tags), [_encoded(part.tobytes(), scheme) for part in parts]))
    return pages


def _encoded(content: bytes, scheme: int) -> bytes:
    encoders = {
        **{5: imagecodecs.lzw_encode, 8: zlib.compress, 32773: imagecodecs.packbits_encode},
        **{50000: imagecodecs.zstd_encode, 34925: imagecodecs.lzma_encode},
    }
    return bytes(encoders.get(scheme, bytes)(content))


def assemble(pages: list[Page], *, big: bool = False, order: str = "<") -> bytes:
    """Write pages one after the other; offsets and byte counts are filled in where none is given.

    The link of a page leads to the ``next`` one, to it``self``, to the ``first``, ``out`` of the
    file or into the ``middle`` of something.
    """
    pointer, entry_count, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    body = bytearray(b"II" if order == "<" else b"MM")
    body += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    link_at, first = inline, None
    for page in pages:
        places = []
        for segment in page.segments:
            places.append(len(body))
            body += segment
        offsets, counts = _segment_tags(page)
        sizes = [len(segment) for segment in page.segments]
        entries = list(page.raw)
        for code, (kind, values) in (
            {offsets: (4, places), counts: (4, sizes)} | page.tags
        ).items():
            content = _packed(kind, values, order)
            entries.append(
                (code, kind, len(content) // struct.calcsize("<" + SIZES[kind]), content)
            )
        written = []
        for code, kind, count, content in sorted(entries, key=lambda entry: entry[0]):
            value = content.ljust(inline, b"\0")
            if len(content) > inline:
                value = struct.pack(order + pointer, len(body))
                body += content
            written.append(struct.pack(order + "HH" + pointer, code, kind, count) + value)
        here = len(body)
        first = here if first is None else first
        struct.pack_into(order + pointer, body, link_at, here)
        body += struct.pack(order + entry_count, len(written)) + b"".join(written)
        link_at = len(body)
        target = {"self": here, "first": first, "out": 2**31, "middle": here // 2}.get(page.link, 0)
        body += struct.pack(order + pointer, target)
        if page.link != "next":
            break
    return bytes(body)


def _segment_tags(page: Page) -> tuple[int, int]:
    return (TILE_OFFSETS, TILE_COUNTS) if TILE_WIDTH in page.tags else (OFFSETS, COUNTS)


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
    n, pick = len(page.segments), random.choice
    number = pick(ODD_NUMBERS)
    offsets, counts = _segment_tags(page)
    changes: list[Tags] = [
        *({tag: (3, [pick(values)])} for tag, values in ODD_SHORTS.items()),
        *({tag: (4, [number])} for tag in ODD_LONGS),
        *({tag: (4, [number] * n)} for tag in (offsets, counts)),
        {WIDTH: (4, [number]), HEIGHT: (4, [pick(ODD_NUMBERS)])},
        {BITS: (3, [8] * pick((2, 3, 300)))},
        {BITS: (3, [pick((16, 32, 64, 128))]), FORMAT: (3, [pick((3, 5, 6))])},
        {SAMPLES: (3, [3]), BITS: (3, [8, 8, 8]), COLOUR: (3, [2])},
        {SAMPLES: (3, [3]), PLANES: (3, [2])},
        {COLOUR: (3, [3]), COLOURS: (3, [7] * pick((0, 3, 255, 768)))},
        {TILE_WIDTH: (3, [16]), TILE_HEIGHT: (3, [pick((0, 1, 15, 65535))])},
        {offsets: (16, [pick((2**63 - 1, 2**62, 8))] * n)},
        {counts: (16, [2**63 - 1] * n)},
        {offsets: (4, [8] * pick((0, 1, 2, 5000)))},
        {counts: (3, [1] * pick((0, 1, 2, 5000)))},
        {counts: (11, [float("nan")] * n)},
        {EXTRA: (3, [pick((0, 1, 2, 9))] * pick((1, 5)))},
        {DESCRIPTION: (2, pick(LIES))},
        *({DESCRIPTION: (2, _ome(random))} for _ in range(2)),
        {DESCRIPTION: (2, "x" * pick((10_000, 3_000_000)))},
        {SUBIFDS: (pick((4, 13)), [pick((8, 50, 100, 2**31))])},
        {pick(FLAVOURS): (pick((1, 2, 4, 7)), random.randbytes(40))},
        {pick(FLAVOURS): (2, pick(LIES))},
        {282: (5, struct.pack("<II", 0, 0)), 283: (5, struct.pack("<II", 1, 0))},
        {282: (2, "abc"), 296: (3, [pick((0, 1, 3, 77))])},
        {254: (4, [pick((1, 2, 4, 2**32 - 1))])},
        {297: (3, [9, 9])},
        {32997: (4, [pick((0, 2, 2**31))])},
        {530: (3, [0, 0]), COLOUR: (3, [6])},
    ]
    choice = random.randrange(len(changes) + 4) - len(changes)
    if choice < 0:
        page.tags |= changes[choice]
        if TILE_WIDTH in page.tags and random.random() < 0.3:
            page.tags.setdefault(TILE_HEIGHT, (3, [16]))
    elif choice == 0:
        page.tags.pop(pick(sorted(page.tags)))
    elif choice == 1:
        kind = pick((1, 2, 3, 4, 5, 12, 13, 16, 0, 99, 65535))
        code = pick((*page.tags, *FLAVOURS, random.randrange(65536)))
        page.raw.append((code, kind, pick(ODD_NUMBERS), random.randbytes(4)))
    elif choice == 2:
        page.tags[COMPRESSION] = (3, [pick(COMPRESSIONS)])
        page.segments = [random.randbytes(pick((1, 9, 300))) for _ in page.segments]
    else:
        page.segments = [b"" for _ in page.segments]


def _ome(random: Random) -> str:
    def number(*usual: int) -> int | str:
        return random.choice(
            (*usual, random.choice((0, 1, 2, 4, 24, -1, 10**6, 10**30, "x", "1e3")))
        )

    others = (f'<TiffData IFD="0"><UUID FileName="{n}">u</UUID></TiffData>' for n in OTHERS)
    data = (
        *(
            "<TiffData/>",
            '<TiffData IFD="0" PlaneCount="2"/>',
            '<TiffData IFD="99999" FirstZ="-7"/>',
        ),
        *(*others, '<BinData Length="9">AAAA</BinData>', "<Channel/>" * 9, "&lol;", ""),
    )
    return OME.format(
        doctype=random.choice(("", "", "", _ENTITIES, '<!DOCTYPE a SYSTEM "file:///etc/passwd">')),
        order=random.choice(("XYZCT", "XYCZT", "XYTZC", "ZZZZZ", "")),
        dtype=random.choice(("uint8", "uint16", "float", "double", "complex", "bit", "text")),
        x=number(24, 24, 24, 24), y=number(24, 24, 24, 24), z=number(), c=number(1, 1),
        t=number(1, 1), scale=random.choice(("0.5", "0", "-1", "nan", "1e400", "µ")),
        unit=random.choice(("µm", "nm", "reference frame", "<", "pixel")),
        data=random.choice(data),
    )  # fmt: skip


_ENTITIES = (
    '<!DOCTYPE l [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {n} "{f"&{p};" * 10}">' for p, n in zip("abcdefgh", "bcdefghi"))
    + '<!ENTITY lol "&i;&i;">]>'
)


def _bomb(random: Random, side: int) -> list[Page]:
    """Return a page whose strip inflates to far more than it should, or should be enormous."""
    scheme, size = random.choice((8, 5, 50000, 32773, 34925)), random.choice((10**5, 3 * 10**7))
    # PackBits: 128 times 0; imagecodecs would take minutes
    encoded = b"\x81\x00" * (size // 128) if scheme == 32773 else _encoded(bytes(size), scheme)
    width = random.choice((side, side, 30_000, 2**17, 2**31 - 1))
    return [Page(_tags(width, width, scheme), [encoded])]


def _by_tifffile(random: Random, is_labels: bool) -> bytes:
    """Return what tifffile writes, of many kinds."""
    dtype = random.choice(("u1", "u2") if is_labels else ("u1", "u2", "f4"))
    shape = random.choice(((24, 24), (2, 24, 24), (2, 24, 24, 3), (2, 3, 24, 24)))
    kind = random.choice(("imagej", "ome", "shaped", "plain"))
    options: dict[str, Any] = {"photometric": "rgb" if shape[-1] == 3 else "minisblack"}
    if kind == "imagej":
        dtype = "u1" if shape[-1] == 3 else dtype
        info = {"spacing": 2.0, "unit": "um", "Info": "é\x1b[2J"}
        options |= {"imagej": True, "metadata": info}
    else:
        options |= {"ome": {"ome": True}, "plain": {"metadata": None}}.get(kind, {})
        if random.random() < 0.5:
            options["tile"] = (16, 16)
        if random.random() < 0.3:
            last = "zlib" if dtype == "f4" else "jpeg2000"
            options["compression"] = random.choice(("zlib", "lzw", "zstd", "packbits", last))
    file = io.BytesIO()
    tifffile.imwrite(file, np.arange(int(np.prod(shape))).reshape(shape).astype(dtype), **options)
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
            spoiled = pages if random.random() < 0.5 else [random.choice(pages)]
            state = random.getstate()
            for page in spoiled:  # all of them the same way
                random.setstate(state)
                _spoil_tag(random, page)
    content = assemble(pages, big=random.random() < 0.2, order=random.choice("<<>"))
    return content if random.random() < 0.9 else damaged(random, content)


def damaged(random: Random, content: bytes) -> bytes:
    """Cut a file short, or change, remove, repeat or insert a few of its bytes."""
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(min(len(content), random.choice((len(content), 400))) + 1)
        length = random.choice((1, 2, 4, 100))
        rest = content[at + length :]
        changed = random.choice((random.randbytes(length), b"\xff" * length, bytes(length)))
        repeated = content[at : at + length] * 2
        inserted = random.randbytes(length) + content[at:]
        content = content[:at] + random.choice(
            (b"", changed + rest, inserted, rest, repeated + rest)
        )
    return content


def directory_ends(content: bytes) -> list[int]:
    """Return where each entry of each directory of a classic little-endian TIFF ends."""
    ends, (at,) = [], struct.unpack_from("<I", content, 4)
    while at:
        (n,) = struct.unpack_from("<H", content, at)
        ends += [at + 2 + 12 * i for i in range(n + 1)]
        (at,) = struct.unpack_from("<I", content, at + 2 + 12 * n)
    return ends
