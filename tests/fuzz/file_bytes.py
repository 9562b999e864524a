"""PNG and JPEG files, model files, checkpoints and text files with something wrong about them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from random import Random
from typing import Any

import imagecodecs
import numpy as np
import torch
from PIL import Image

from .tiff_bytes import ODD_NUMBERS, damaged

MARKER = "EXECUTED"  # the file that a pickle would make, were it ever loaded
HUGE_INTEGER = "9" * 5000
ODD_TEXTS = (
    *("", " ", "0", "-1", "1", "2", "1e400", "nan", "inf", "-inf", "None", "true", "9" * 30),
    *(HUGE_INTEGER, "é", "٣", "\x1b[31mred", "a\nb", "a\rb", "\u202e", "x" * 100_000, "0x10"),
    *("1_000", "½", "²", ":", "0:1", "1:0", "0:0", "-1:1", "0:" + "9" * 30, "0:" + HUGE_INTEGER),
    *("0:1,0:1", "0:12,0:12", "8GiB", "1B", "1KiB", "20MB", "0GiB", "9" * 400 + "GiB", "1.5h"),
    *(HUGE_INTEGER + "s", ".5s", "1e3s", "--", "-", "--help-me", "\udcff", "<script>", "%s%n"),
    *("{0}", "../..", "/", "~", "auto", "72", "44", "76", "4", "1e-400", "0.5", "65536"),
    *("2147483648", "18446744073709551616"),
)


class Malicious:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, (f"touch {MARKER}",)


def hostile_png(random: Random, *, side: int = 24) -> bytes:
    """Return a PNG file with something wrong about it, or with nothing wrong."""
    pick, chance = random.choice, random.random
    depth = pick((1, 2, 4, 8, 8, 8, 16, 16, 0, 3, 32))
    colour = pick((0, 0, 0, 2, 3, 4, 6, 1, 9))
    size = [pick(ODD_NUMBERS) if chance() < 0.2 else side for _ in range(2)]
    n_samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    row = 1 + -(-side * n_samples * max(depth, 1) // 8)
    pixels = bytearray(pick((random.randbytes(row * side), bytes(row * side))))
    pixels[::row] = bytes(pick((0, 0, 0, 1, 2, 3, 4, 9)) for _ in range(side))
    stream = zlib.compress(pixels)
    if chance() < 0.1:
        stream = pick((zlib.compress(bytes(30_000_000)), zlib.compress(b""), b"", b"x" * 40))
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, pick((0, 0, 0, 1, 7)))
    chunks = [(b"IHDR", head)]
    if chance() < 0.3:
        chunks.append((b"PLTE", random.randbytes(pick((0, 1, 3, 768, 3000)))))
    if chance() < 0.3:
        text = pick((random.randbytes(20), b"a\0\0" + zlib.compress(bytes(10**7))))
        chunks.append((pick(b"tRNS gAMA iCCP sBIT zTXt acTL eXIf XXXX".split()), text))
    chunks += [(b"IDAT", stream)] * pick((1, 1, 1, 1, 0, 2))
    chunks += [(b"IEND", b"")] * pick((1, 1, 1, 1, 0, 2))
    if chance() < 0.1:
        random.shuffle(chunks)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        check = zlib.crc32(name + body) ^ (chance() < 0.05)
        length = pick(ODD_NUMBERS) if chance() < 0.03 else len(body)
        content += struct.pack(">I", length) + name + body + struct.pack(">I", check)
    return damaged(random, content) if chance() < 0.25 else content


def grey_png(side: int = 24) -> bytes:
    """Return a PNG that is all right."""
    y, x = np.mgrid[:side, :side]
    return bytes(imagecodecs.png_encode(((y // 8 + x // 8) % 2 * 255).astype(np.uint8)))


def odd_png(random: Random, *, side: int = 24) -> bytes:
    """Return a PNG of a rare kind that is all right: few bits, a colour table, grey as colour."""
    pick, chance = random.choice, random.random
    depth, colour = pick(((1, 0), (2, 0), (4, 0), (16, 0), (8, 2), (8, 3), (4, 3), (2, 3), (1, 3),
                          (8, 4), (16, 4), (8, 6), (16, 6)))  # fmt: skip
    y, x = np.mgrid[:side, :side]
    checks = (y // 8 + x // 8) % 2 * (2**depth - 1)
    opaque = np.full_like(checks, 2**depth - 1)
    n_colours = 3 if colour in (2, 6) else 1
    samples = np.stack([checks] * n_colours + [opaque] * (colour in (4, 6)), -1).reshape(side, -1)
    bits = samples[..., None] >> np.arange(depth - 1, -1, -1) & 1
    rows = np.packbits(bits.reshape(side, -1).astype(np.uint8), axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))]
    if colour == 3:
        greys = [bytes([grey] * 3) for grey in random.sample(range(256), 2**depth)]
        chunks.append((b"PLTE", b"".join(greys)))
    if chance() < 0.3:
        chunks.append((b"pHYs", struct.pack(">IIB", *pick(((1, 1), (0, 9), (10**8, 10**7))), 1)))
    if chance() < 0.2:
        chunks.append((b"tRNS", pick((b"\0\0", b"\xff\xff", b"\0" * 6, b""))))
    if chance() < 0.2:
        chunks.append((b"eXIf", odd_exif(random)))
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks += [(b"IDAT", stream), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        check = struct.pack(">I", zlib.crc32(name + body))
        content += struct.pack(">I", len(body)) + name + body + check
    return content


def odd_exif(random: Random) -> bytes:
    """Return Exif that states an orientation, or a lie."""
    order, form = random.choice(((b"II*\0", "<"), (b"MM\0*", ">")))
    start = random.choice((8, 8, 8, *ODD_NUMBERS))
    n_tags = random.choice((1, 1, 1, 0, 65535))
    entry = struct.pack(f"{form}HHHIHH", n_tags, 0x0112, 3, 1, random.randrange(10), 0)
    return order + struct.pack(f"{form}I", start) + entry


def hostile_jpeg(random: Random, *, side: int = 24) -> bytes:
    """Return a JPEG file that is all right, or with something wrong about it."""
    pick, chance = random.choice, random.random
    y, x = np.mgrid[:side, :side]
    grey = ((y // 8 + x // 8) % 2 * 200 + random.randrange(50)).astype(np.uint8)
    planes = [grey] * pick((1, 1, 3, 3, 4))
    if chance() < 0.2:
        planes[-1] = 255 - grey
    image = Image.fromarray(np.stack(planes, -1) if len(planes) > 1 else grey,
                            {1: "L", 3: "RGB", 4: "CMYK"}[len(planes)])  # fmt: skip
    options: dict[str, Any] = {"quality": pick((1, 50, 95, 100)), "progressive": chance() < 0.3}
    if chance() < 0.3:
        options["restart_marker_blocks"] = pick((1, 2, 5))
    if chance() < 0.3:
        options["exif"] = b"Exif\0\0" + odd_exif(random)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    content = bytearray(file.getvalue())
    markers = [i for i in range(len(content) - 9) if content[i] == 255 and content[i + 1] > 0xBF]
    for _ in range(pick((0, 0, 1, 1, 2))):
        at = pick(markers)
        if chance() < 0.3:
            content[at + 1] = pick((0xC0, 0xC1, 0xC3, 0xC9, 0xD8, 0xD9, 0xDA, 0xD0, 0xFE, 0x00))
        else:  # a length, a size, a table
            struct.pack_into(">H", content, at + pick((2, 5, 7)), pick(ODD_NUMBERS) % 65536)
    if chance() < 0.2:
        content = content[: random.randrange(len(content))] + pick((b"", b"\xff\xd9"))
    return damaged(random, bytes(content)) if chance() < 0.3 else bytes(content)


def image_file(random: Random, side: int) -> tuple[bytes, str]:
    """Return a PNG or JPEG of any kind, right or not, and its suffix."""
    kind = random.random()
    if kind < 0.25:
        content, suffix = hostile_png(random), ".png"
    elif kind < 0.65:
        content, suffix = odd_png(random, side=side), ".png"
        content = damaged(random, content) if random.random() < 0.3 else content
    else:
        content, suffix = hostile_jpeg(random, side=side), random.choice((".jpg", ".JPEG"))
    return content, random.choice((".tif", ".png", ".x")) if random.random() < 0.05 else suffix


def hostile_model(random: Random, good: bytes) -> bytes:
    """Return a model file with something wrong about it, or what is none at all."""
    kind = random.randrange(10)
    if kind < 2:
        return pickled(random) if kind else damaged(random, good)
    if kind == 2:
        length = random.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(good), len(good) - 8))
        return struct.pack("<Q", length) + good[8:]
    (length,) = struct.unpack("<Q", good[:8])
    header, tensors = json.loads(good[8 : 8 + length]), good[8 + length :]
    about = header["__metadata__"]
    if kind < 7:
        config = json.loads(about["config"])
        for _ in range(random.choice((1, 1, 2, 3))):
            config[random.choice((*config, "unknown"))] = hostile_value(random)
        text = json.dumps(config)
        about["config"] = hostile_json(random, text) if random.random() < 0.3 else text
    elif kind == 7:
        name = random.choice(("unet_repro", "config", "training", "extra"))
        about[name] = hostile_json(random, "{}")
    else:
        names = [name for name in header if name != "__metadata__"]
        for name in random.sample(names, random.choice((1, 2, len(names)))):
            _spoil_entry(random, header, name, len(tensors))
        if random.random() < 0.2:
            tensors = random.choice((b"", tensors * 2, b"\xff" * len(tensors), bytes(len(tensors))))
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + tensors


def _spoil_entry(random: Random, header: dict[str, Any], name: str, n_bytes: int) -> None:
    entry, pick = header.pop(name), random.choice
    dtypes = "F64 F16 BF16 I64 I32 U8 BOOL F8_E4M3 F8_E5M2 F4 F6_E2M3 C64 U64 U16 I8 X"
    dtype = pick((*dtypes.split(), ""))
    offsets = ([0, n_bytes], [0, 0], [9, 1], [2**63, 2**64 - 1], [-1, 4], [])
    change = pick(
        (
            {"dtype": dtype},
            {"shape": pick(([], [0], [-1], [2**62, 2**62], [2**40], entry["shape"] * 2))},
            {"data_offsets": pick(offsets)},
            {"dtype": dtype, "shape": [random.randrange(9)]},
            None,  # gone
            {},  # renamed
        )
    )
    if change is not None:
        new = name if change else pick(("", "\x1b[2J", "x" * 1000, "a\nb", "é"))
        header[new] = entry | change


def hostile_value(random: Random, depth: int = 0) -> Any:
    """Return what JSON can hold, most of it absurd."""
    kind = random.randrange(9)
    if kind == 0 and depth < 3:
        return [hostile_value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 1 and depth < 3:
        return {random.choice(ODD_TEXTS)[:50]: hostile_value(random, depth + 1) for _ in range(3)}
    plain = (
        (None, True, False, [], {}),
        (float("nan"), float("inf"), -1e308, 1e308, 0.5, -0.0, 5e-324, 1e30),
        (10**400, -(10**400), 2**63, -1, 0, 1, 2, 8, 9, 65536, 10**15),
        [text.encode("utf-8", "replace").decode() for text in ODD_TEXTS],
        ("<script>alert(1)</script>",),
        range(70),
    )
    return random.choice(random.choice(plain))


def hostile_json(random: Random, text: str) -> str:
    """Return JSON with a change: of a value, of its bytes, or of its nesting."""
    kind = random.randrange(6)
    if kind == 0:
        depth = random.choice((40, 48, 50, 100, 950, 980, 990, 1000, 100_000))
        opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
        nested = opening * depth + "1" + closing * depth
        content = _parsed(text)
        if not isinstance(content, dict) or not content:
            return nested
        content[random.choice(sorted(content))] = "@"
        return json.dumps(content).replace('"@"', nested)
    if kind == 1:
        return random.choice(
            (*'null [] 1 "a" {} NaN {'.split(), HUGE_INTEGER, "\ufeff{}", "\0", "")
        )
    if kind == 2:
        return damaged(random, text.encode()).decode("utf-8", "replace")
    content = _parsed(text)
    for _ in range(random.choice((1, 1, 2, 5))):
        _change_somewhere(random, content)
    return text if content is None else json.dumps(content)


def _parsed(text: str) -> Any:
    try:  # a run's file may have been spoilt before
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _change_somewhere(random: Random, content: Any) -> None:
    """Put an absurd value in some place of nested lists and objects, or take one away."""
    while isinstance(content, (dict, list)) and content:
        key = random.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if isinstance(content[key], (dict, list)) and content[key] and random.random() < 0.7:
            content = content[key]
            continue
        if random.random() < 0.2:
            del content[key]
        else:
            content[key] = hostile_value(random)
        return


def pickled(random: Random) -> bytes:
    """Return a pickle that would run a command: bare, as torch writes it, in a zip or tar file."""
    kind, file = random.randrange(6), io.BytesIO()
    bare = pickle.dumps(Malicious(), protocol=random.choice((0, 2, 4)))
    if kind == 0:
        return bare
    if kind == 1:
        torch.save({"identity": Malicious(), "iteration": 1}, file)
    elif kind == 2:
        torch.save(Malicious(), file, _use_new_zipfile_serialization=False)
    elif kind == 3:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", bare)
            archive.writestr("archive/version", "3")
            archive.writestr("../../escaped", "x")
    elif kind == 4:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                entry = tarfile.TarInfo(name)
                entry.size = len(bare)
                archive.addfile(entry, io.BytesIO(bare))
    else:
        np.save(file, np.array([Malicious()], object), allow_pickle=True)
    content = file.getvalue()
    return damaged(random, content) if random.random() < 0.2 else content


def hostile_log(random: Random, text: str) -> bytes:
    """Return a log with absurd numbers, fields, lines or bytes."""
    lines = text.splitlines()
    for _ in range(random.choice((1, 1, 2, 4))):
        row = random.randrange(len(lines))
        cells = lines[row].split(",")
        kind = random.randrange(7)
        if kind < 3:
            odd = (*ODD_TEXTS, "1e308", "-1e308", "1e-320", '"', "x" * 200_000, "=1+1", "0")
            cells[random.randrange(len(cells))] = random.choice(odd)
        elif kind == 3:
            cells = cells[: random.randrange(len(cells) + 1)]
        elif kind == 4:
            cells += ["9"] * random.choice((1, 1000))
        elif kind == 5:
            cells = ['"' + random.choice(("", "a" * 200_000, "\n" * 9)), *cells]
        else:
            cells = random.choice(([], ["\0"], ["\r"], ["\x85\u2028"]))
        lines[row] = ",".join(cells)
    lines[-1] += random.choice(("\n", "", "\r\n"))
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(random, content) if random.random() < 0.2 else content
