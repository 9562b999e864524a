"""Find the paper's data sets on this machine, or fetch them from those who publish them."""

import hashlib
import http
import http.client
import os
import secrets
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from unet_repro.errors import InputError
from unet_repro.files.lock import exclusive
from unet_repro.images.stacks import read_stack

PathLike = str | os.PathLike[str]

_CHUNK_BYTES = 2**20
_TIMEOUT_S = 20
_LARGEST_UNPACKED_BYTES = 4 * 2**30  # the real sets unpack to less than 100 MB


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from and how to recognise it.

    Attributes
    ----------
    url : str
        The archive, a zip file.
    terms : str
        One line on use and citation.
    required : tuple of str
        Files and folders without which the set is not usable, below its folder.
    size : int, optional
        Of the archive, in bytes.
    sha256 : str, optional
        Of the archive.
    pixels_sha256 : dict of str to str
        File to SHA-256 of its raw pixels in C order.
    """

    url: str
    terms: str
    required: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    pixels_sha256: dict[str, str] = field(default_factory=dict)


_CTC_FOLDERS = ("01", "01_GT/SEG", "01_GT/TRA", "02", "02_GT/SEG", "02_GT/TRA")
_CTC_TERMS = (
    "cite the Cell Tracking Challenge's paper; other public use needs the providers' permission"
)

DATASETS = {
    "isbi2012": Dataset(
        url="https://downloads.imagej.net/ISBI-2012-challenge.zip",
        terms=(
            "free for generating or testing non-commercial segmentation software; "
            "cite Cardona et al. 2010, PLoS Biol 8(10): e1000502"
        ),
        required=("train-volume.tif", "train-labels.tif", "test-volume.tif"),
        pixels_sha256={
            "train-volume.tif": "200da3d452d726e6c9ca1ce04b869d4edb727320d23b516d01cce707dc8c4760",
            "train-labels.tif": "a7cb64000a1a7e542682927e19c91339f58f9f178e0bcce4e207371116f0ca36",
            "test-volume.tif": "1b58fa7ec1d0ff9d39a855622db3ff66a97863036339b0d04be51b2f5a99b0e9",
        },
    ),
    "phc-u373": Dataset(
        url="https://data.celltrackingchallenge.net/training-datasets/PhC-C2DH-U373.zip",
        terms=_CTC_TERMS,
        required=_CTC_FOLDERS,
        size=43_454_399,
        sha256="b18185c18fce54e8eeb93e4bbb9b201d757add9409bbf2283b8114185a11bc9e",
    ),
    "dic-hela": Dataset(
        url="https://data.celltrackingchallenge.net/training-datasets/DIC-C2DH-HeLa.zip",
        terms=_CTC_TERMS,
        required=_CTC_FOLDERS,
        size=41_504_758,
        sha256="832fed2d05bb7488cf9c51a2994b75f8f3f53b3c3098856211f2d39023c34e1a",
    ),
}


def find_or_download(
    dataset: str, root: PathLike | None = None, *, show_progress: bool = True
) -> Path:
    """Give the folder of a data set, and download it first if it is not on this machine.

    Looked at in turn: the folder `dataset` below the environment variable ``UNET_REPRO_DATA``;
    the folder `dataset` below `root`, or, without `root`, the project's own ``data/…/raw``. What
    is downloaded goes to the latter. An interrupted download goes on where it stopped, also the
    next time. One process at a time downloads a set.

    Parameters
    ----------
    dataset : str
        ``"isbi2012"``, ``"phc-u373"`` or ``"dic-hela"``.
    root : path-like, optional
        A folder for data sets, in place of the project's own.
    show_progress : bool
        Draw a progress bar on standard error while downloading.

    Returns
    -------
    pathlib.Path
        With the files as published: ``train-volume.tif`` …, or ``01/``, ``01_GT/`` ….

    Raises
    ------
    InputError
        If there is no such data set, or if it is neither found nor to be had. The one line names
        the folders tried, the address and where to put the files by hand.
    """
    if dataset not in DATASETS:
        raise InputError(f"{dataset}: no such data set; there are {', '.join(DATASETS)}")
    source = DATASETS[dataset]
    target = _own_folder(dataset) if root is None else Path(root) / dataset
    candidates = [target]
    if os.environ.get("UNET_REPRO_DATA"):
        candidates.insert(0, Path(os.environ["UNET_REPRO_DATA"]) / dataset)
    for folder in candidates:
        if not _missing(source, folder):
            return folder
    archive = target.parent / "download" / PurePosixPath(source.url).name
    try:
        with exclusive(
            archive.with_name(f".{dataset}.lock"), f"another process is downloading to {target}"
        ):
            if _missing(source, target):  # another process may have brought it meanwhile
                _get(source, archive, target, show_progress)
    except (InputError, OSError) as error:
        tried = " and ".join(str(folder) for folder in candidates)
        raise InputError(
            f"{dataset}: not in {tried}; download from {source.url} failed: {error}; "
            f"to do it by hand, put {', '.join(source.required)} into {target}"
        ) from error
    return target


def _own_folder(dataset: str) -> Path:
    project = Path(__file__).resolve().parents[2]
    if not (project / "setup.cfg").is_file():  # installed without its project
        project = Path.cwd()
    return project / "data" / dataset.replace("-", "_") / "raw"


def _missing(source: Dataset, folder: Path) -> list[str]:
    return [name for name in source.required if not (folder / name).exists()]


def _get(source: Dataset, archive: Path, target: Path, show_progress: bool) -> None:
    if target.exists():
        raise InputError(
            f"{target} is there but lacks {_missing(source, target)[0]}; complete or remove it"
        )
    for left in target.parent.glob(f".{target.name}.????????"):  # where a killed call unpacked
        shutil.rmtree(left, ignore_errors=True)
    _fetch(source, archive, show_progress)
    _unpack(source, archive, target)
    archive.unlink()


def _fetch(source: Dataset, archive: Path, show_progress: bool) -> None:
    """Download to ``….part``, check the hash, then rename it to `archive`."""
    if archive.exists():
        return
    part = archive.with_name(archive.name + ".part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise InputError(f"{archive.parent} cannot be written: {error.strerror}") from error
    while True:
        before = part.stat().st_size
        try:
            total = _fetch_rest(source, part, show_progress)
            reason = "the connection was closed"
        except urllib.error.HTTPError as error:
            total, reason = None, str(error)
        except urllib.error.URLError as error:
            total, reason = None, str(error.reason)
        except (OSError, http.client.HTTPException) as error:
            total, reason = None, str(error)
        got = part.stat().st_size
        if total is not None and got >= total:
            break
        if got <= before:  # no progress: give up, but keep what there is
            if got:
                reason += f" after {got} bytes, which are kept for the next time"
            else:
                part.unlink()
            raise InputError(" ".join(reason.split()))
    if source.sha256 is not None:
        found = _file_sha256(part)
        if found != source.sha256:
            part.unlink()
            raise InputError(f"its SHA-256 is {found}, not {source.sha256}; it was deleted")
    os.replace(part, archive)


def _fetch_rest(source: Dataset, part: Path, show_progress: bool) -> int:
    """Append what the server has beyond `part`, and give the full size it announces."""
    start = part.stat().st_size
    request = urllib.request.Request(source.url, headers={"User-Agent": "unet-repro"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return start  # all of it had arrived the last time
        part.unlink()  # it is no part of this file
        part.touch()
        return _fetch_rest(source, part, show_progress)
    with response:
        is_rest = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if is_rest else 0  # a server without ranges sends everything again
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else source.size
        with (
            part.open("ab" if is_rest else "wb") as file,
            tqdm(
                desc=part.stem,
                initial=start,
                total=total,
                unit="B",
                unit_scale=True,
                disable=not show_progress,
            ) as bar,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        return part.stat().st_size if total is None else total


def _unpack(source: Dataset, archive: Path, target: Path) -> None:
    """Unpack into a private folder, check it, then rename it to `target`."""
    private = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with zipfile.ZipFile(archive) as file:
            _check_members(file)
            file.extractall(private)
        inner = [private, *sorted(folder for folder in private.iterdir() if folder.is_dir())]
        complete = [folder for folder in inner if not _missing(source, folder)]
        if not complete:
            raise InputError(f"it lacks {_missing(source, private)[0]}")
        for name, expected in source.pixels_sha256.items():
            found = pixels_sha256(complete[0] / name)
            if found != expected:
                raise InputError(f"the pixels of {name} have the SHA-256 {found}, not {expected}")
        os.replace(complete[0], target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
    except (InputError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        archive.unlink()  # or the next attempt would meet it again
        raise InputError(f"the archive was deleted: {error}") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _check_members(file: zipfile.ZipFile) -> None:
    for member in file.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in member.filename or is_link:
            raise InputError(f"{member.filename!r} in it would be written outside the folder")
    unpacked = sum(member.file_size for member in file.infolist())
    if unpacked > _LARGEST_UNPACKED_BYTES:
        raise InputError(f"it would unpack to {unpacked} bytes")


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def pixels_sha256(path: PathLike) -> str:
    """Give the SHA-256 of a stack's raw pixels in C order, however they are compressed.

    Parameters
    ----------
    path : path-like
        As in `unet_repro.images.stacks.read_stack`.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    InputError
        As `unet_repro.images.stacks.read_stack`.
    """
    return hashlib.sha256(read_stack(path).tobytes()).hexdigest()
