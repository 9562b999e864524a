"""Find the paper's data sets on this machine, or fetch them from those who publish them."""

import hashlib
import os
import secrets
import shutil
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pooch

from unet_repro.errors import InputError
from unet_repro.files.lock import exclusive
from unet_repro.images.slices import of_one_size
from unet_repro.images.stacks import read_stack
from unet_repro.progress import ProgressBar

PathLike = str | os.PathLike[str]

_CHUNK_BYTES = 2**20
_TIMEOUT_S = 20
_LARGEST_UNPACKED_BYTES = 4 * 2**30  # the real sets unpack to less than 100 MB


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from and how to recognise it."""

    url: str  # a zip file
    terms: str  # of use and citation, in one line
    required: tuple[str, ...]  # files and folders without which it is not usable
    sha256: str | None = None  # of the archive
    pixels_sha256: dict[str, str] = field(default_factory=dict)  # by file, raw, in C order


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
        sha256="b18185c18fce54e8eeb93e4bbb9b201d757add9409bbf2283b8114185a11bc9e",
    ),
    "dic-hela": Dataset(
        url="https://data.celltrackingchallenge.net/training-datasets/DIC-C2DH-HeLa.zip",
        terms=_CTC_TERMS,
        required=_CTC_FOLDERS,
        sha256="832fed2d05bb7488cf9c51a2994b75f8f3f53b3c3098856211f2d39023c34e1a",
    ),
}


def find_or_download(
    dataset: str, root: PathLike | None = None, *, show_progress: bool = True
) -> Path:
    """Give the folder of a data set, and download it first if it is not on this machine.

    Looked at in turn: the folder `dataset` below the environment variable ``UNET_REPRO_DATA``;
    the folder `dataset` below `root`, or, without `root`, the project's own ``data/…/raw``. What
    is downloaded goes to the latter, complete and checked or not at all. One process at a time
    downloads a set.

    Parameters
    ----------
    dataset : str
        ``"isbi2012"``, ``"phc-u373"`` or ``"dic-hela"``.

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
    lock = target.with_name(f".{dataset}.lock")
    try:
        with exclusive(lock, f"another process is downloading to {target}"):
            if _missing(source, target):  # another process may have brought it meanwhile
                _get(source, target, show_progress)
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


def _get(source: Dataset, target: Path, show_progress: bool) -> None:
    """Download and unpack into a private folder, check, then rename what is there to `target`."""
    if target.exists():
        raise InputError(
            f"{target} is there but lacks {_missing(source, target)[0]}; complete or remove it"
        )
    for left in target.parent.glob(f".{target.name}.????????"):  # where a killed call worked
        shutil.rmtree(left, ignore_errors=True)
    private = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        private.mkdir()
        _fetch(source, private / source.url.rpartition("/")[2], show_progress)
        _unpack(source, private / source.url.rpartition("/")[2], target)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _fetch(source: Dataset, archive: Path, show_progress: bool) -> None:
    bar = _DownloadBar(show_progress)
    download = pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S)
    try:
        with closing(bar):
            download(source.url, str(archive), None)
    except OSError as error:
        if (response := getattr(error, "response", None)) is not None:
            response.close()  # pooch does not
        reason: BaseException = error
        while inner := reason.__cause__ or reason.__context__:  # requests wraps what happened
            reason = inner
        raise InputError(" ".join(str(reason).split())) from error
    found = pooch.file_hash(str(archive))
    if source.sha256 not in (None, found):
        raise InputError(f"its SHA-256 is {found}, not {source.sha256}; it was deleted")


class _DownloadBar:
    """The package's bar, for what pooch tells: `total` first, then chunks, the last rounded up."""

    total = 0

    def __init__(self, is_shown: bool) -> None:
        self._is_shown, self._count = is_shown, 0
        self._bar: ProgressBar | None = None

    def update(self, n_bytes: int) -> None:
        if self._bar is None:
            self._bar = ProgressBar(self.total, unit="B", desc="download", is_shown=self._is_shown)
        n_bytes = min(n_bytes, self.total - self._count)
        self._count += n_bytes
        self._bar.update(n_bytes)

    def reset(self) -> None:
        """All is there: pooch would fill its bar anew."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()


def _unpack(source: Dataset, archive: Path, target: Path) -> None:
    """Unpack beside the archive, check what came out, then rename it to `target`."""
    private = archive.with_name("unpacked")
    try:
        with zipfile.ZipFile(archive) as file:
            unpacked = sum(member.file_size for member in file.infolist())
            if unpacked > _LARGEST_UNPACKED_BYTES:
                raise InputError(f"it would unpack to {unpacked} bytes")
            file.extractall(private)  # nothing gets out of the folder, links become plain files
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
        raise InputError(f"the archive was deleted: {error}") from error


def pixels_sha256(path: PathLike) -> str:
    """Give the SHA-256 of a stack's raw pixels in C order, however they are compressed."""
    return hashlib.sha256(of_one_size(read_stack(path), path).tobytes()).hexdigest()
