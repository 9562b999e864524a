"""TIFF files as libtiff's tiffcp and tiffsplit write them: pixels first, old descriptions kept."""

import struct

import tifffile

TAGS = (256, 257, 258, 259, 262, 270, 274, 277, 278, 284, 317, 322, 323, 338, 339)
FORMS = {1: "B", 3: "H", 4: "I"}


def copy_pages(sources, path):
    """Write pages, each given as (file, number), into one file; no pixel is decoded."""
    body, link_at = bytearray(b"II*\0\0\0\0\0"), 4
    for source, number in sources:
        with tifffile.TiffFile(source) as file:
            page = file.pages[number]
            tags = {code: page.tags[code] for code in TAGS if code in page.tags}
            entries = {code: (tag.dtype, tag.value) for code, tag in tags.items()}
            places = []
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                places.append(len(body))
                file.filehandle.seek(offset)
                body += file.filehandle.read(count)
            offsets, counts = (324, 325) if page.is_tiled else (273, 279)
            entries |= {offsets: (4, places), counts: (4, list(page.databytecounts))}
        directory = b""
        for code, (kind, value) in sorted(entries.items()):
            if isinstance(value, str):
                content = value.encode() + b"\0"
                n = len(content)
            else:
                values = value if isinstance(value, (tuple, list)) else (value,)
                n, content = len(values), struct.pack(f"<{len(values)}{FORMS[kind]}", *values)
            if len(content) > 4:
                place = len(body)
                body += content
                content = struct.pack("<I", place)
            directory += struct.pack("<HHI", code, kind, n) + content.ljust(4, b"\0")
        struct.pack_into("<I", body, link_at, len(body))
        body += struct.pack("<H", len(directory) // 12) + directory
        link_at = len(body)
        body += bytes(4)
    path.write_bytes(body)
    return path
