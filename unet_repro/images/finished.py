"""Whether an output is there already, whole and of the very job that is to be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unet_repro.errors import InputError
from unet_repro.files.block_store import BlockStore
from unet_repro.images.calibration import read_info
from unet_repro.images.image_files import open_file
from unet_repro.images.image_formats import format_of


def is_finished(store: BlockStore, infos: Mapping[Path, str], *, channels: int = 1) -> bool:
    """Tell whether a store that resumes has nothing left to do, and let it know.

    Each file must be there and record its text, as `calibration.read_info` gives it. Of a TIFF all
    strips and tiles must lie in the file, of a PNG all chunks; pixels are not decoded. A file that
    is damaged is not replaced: the store refuses it, and says why.
    """
    if not store.resumes:
        return False
    for path, info in infos.items():
        if not path.is_file() or read_info(path) != info:
            return False
        try:
            if format_of(path) == "TIFF":
                open_file(path, channels=channels).close()
        except InputError as error:
            store.doubt = f", damaged ({error})"
            return False
    store.is_complete = True
    return True
