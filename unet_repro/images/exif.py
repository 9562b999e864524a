"""Exif, what cameras and viewers write into JPEG and PNG files: of it, the orientation."""

import struct

_ORIENTATION, _SHORT = 0x0112, 3


def orientation_note(exif: bytes) -> str | None:
    """Say that an image is to be turned or mirrored for display, or nothing if it is not.

    Examples
    --------
    >>> orientation_note(b"MM\\0*\\0\\0\\0\\10" b"\\0\\1" b"\\1\\x12\\0\\3\\0\\0\\0\\1\\0\\6\\0\\0")
    'its Exif orientation (6) is dropped: the pixels are used as stored'
    """
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (n_tags,) = struct.unpack_from(f"{order}H", exif, start)
        for i in range(n_tags):
            entry = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i)
            if entry[:3] == (_ORIENTATION, _SHORT, 1) and 2 <= entry[3] <= 8:
                return (
                    f"its Exif orientation ({entry[3]}) is dropped: the pixels are used as stored"
                )
    except struct.error:  # damaged, or no Exif at all
        pass
    return None
