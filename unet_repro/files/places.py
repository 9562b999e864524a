"""Folders that may lie on a disc or behind a URL: files in them by key, whole or absent.

Not fsspec but obstore: one wheel without dependencies that other packages pin, it can be pickled
and sent to other machines, and writes are atomic and can be refused where a key exists.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from unet_repro.errors import InputError

PathLike = str | os.PathLike[str]

# `Path` makes one slash of two; no folder of a relative path is called like this
_URL = re.compile(r"(s3|gs|az|https?):/+(?=[^/])")
_HDF5 = re.compile(r"(?P<file>.+\.(?:h5|hdf5|hdf|he5|ims|n5h5))(?::/*(?P<dataset>.*))?", re.I)
ZARR_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup")  # one makes a folder a zarr array or group
_NO_LINKS = {  # what file systems without hard links answer
    *(errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EINVAL, errno.EMLINK, errno.EXDEV),
}
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def url_of(path: PathLike) -> str | None:
    """Return the URL that a path stands for, None for one on a disc.

    Examples
    --------
    >>> url_of(Path("s3://bucket/a.zarr")), url_of("a.zarr")
    ('s3://bucket/a.zarr', None)
    """
    text = os.fspath(path)
    found = _URL.match(text)
    return f"{found[1]}://{text[found.end() :].rstrip('/')}" if found else None


class _Url(PurePosixPath):
    def __str__(self) -> str:
        return url_of(super().__str__()) or ""


def as_path(path: PathLike) -> Path:
    """Return a path; that of a URL is shown as the URL, not with one slash of two.

    Examples
    --------
    >>> print(as_path(Path("s3://bucket/a.zarr")) / "0", as_path("a.zarr"))
    s3://bucket/a.zarr/0 a.zarr
    """
    return cast(Path, _Url(path)) if url_of(path) else Path(path)


def hdf5_of(path: PathLike) -> tuple[Path, str] | None:
    """Return the file and the dataset, maybe empty, that a name means; None for another name.

    Examples
    --------
    >>> file, dataset = hdf5_of("a.h5:/volumes/raw")
    >>> str(file), dataset, hdf5_of("a.tif")
    ('a.h5', 'volumes/raw', None)
    """
    found = _HDF5.fullmatch(str(path))
    if not found or (found["dataset"] is None and not Path(path).is_file()):
        return None
    return Path(found["file"]), (found["dataset"] or "").strip("/")


def place_at(path: PathLike) -> Folder | Bucket:
    """Return the folder that a path or URL names; it need not be there."""
    url = url_of(path)
    return Bucket(url) if url else Folder(Path(os.path.abspath(path)))


def name_of(path: PathLike) -> str:
    """Return the last part of a path or URL."""
    return os.fspath(path).rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Folder:
    """A folder on a disc."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.path / name)

    @property
    def parent(self) -> Folder:
        """The folder that holds it."""
        return Folder(self.path.parent)

    def read(self, key: str, size: int | None = None) -> bytes | None:
        """Return a file, or its first `size` bytes; None where there is none."""
        try:
            with (self.path / key).open("rb") as file:
                return file.read(-1 if size is None else size)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{self.path / key}: cannot be read: {error.strerror}") from error

    def write(self, key: str, content: bytes, *, replace: bool = True) -> bool:
        """Write a file, whole or not at all; tell whether it was: not where it may not replace."""
        target = self.path / key
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            if replace:
                os.replace(temporary, target)
            else:
                _put_new(temporary, target, content)
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return True

    def has(self, key: str) -> bool:
        """Tell whether a file is there."""
        return (self.path / key).is_file()

    def keys(self, under: str = "") -> Iterator[str]:
        """Yield the keys of all files below a folder, in no order."""
        pending = [under.rstrip("/")]
        while pending:
            folder = pending.pop()
            try:
                entries = os.scandir(self.path / folder)
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(key)
                    else:
                        yield key

    def is_empty(self) -> bool:
        """Tell whether nothing is there."""
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def entries(self) -> list[str]:
        """Return the names of the files and folders directly in it."""
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def remove(self, key: str) -> None:
        """Remove a file, if it is there."""
        (self.path / key).unlink(missing_ok=True)

    def clear(self, under: str = "") -> None:
        """Remove all that is in this folder, or a folder in it; what stays is an `InputError`.

        This folder itself stays: it may be a link.
        """
        folder = self.path / under
        while folder.is_dir():
            try:
                for entry in list(os.scandir(folder)):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
                if under:
                    folder.rmdir()
                return
            except FileNotFoundError:  # another process removes it too
                continue
            except OSError as error:
                name = error.filename or folder
                raise InputError(f"{name}: cannot be removed: {error.strerror}") from error

    def store(self, *, read_only: bool = False) -> Any:
        """Return it as zarr's store."""
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=read_only)


@dataclass(frozen=True)
class Bucket:
    """A folder behind a URL; credentials and endpoints are those of the environment."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Bucket:
        return Bucket(f"{self.url}/{name}")

    @property
    def parent(self) -> Bucket:
        """As `Folder.parent`."""
        return Bucket(self.url.rpartition("/")[0])

    def read(self, key: str, size: int | None = None) -> bytes | None:
        """As `Folder.read`."""
        with _told(self.url):
            import obstore

            try:
                if size is not None:
                    return bytes(obstore.get_range(self._opened(), key, start=0, length=size))
                return bytes(obstore.get(self._opened(), key).bytes())
            except FileNotFoundError:
                return None

    def write(self, key: str, content: bytes, *, replace: bool = True) -> bool:
        """As `Folder.write`."""
        with _told(self.url):
            import obstore
            from obstore.exceptions import AlreadyExistsError

            try:
                mode: Any = "overwrite" if replace else "create"
                obstore.put(self._opened(), key, content, mode=mode)
            except (AlreadyExistsError, FileExistsError):
                return False
            return True

    def has(self, key: str) -> bool:
        """As `Folder.has`."""
        with _told(self.url):
            import obstore

            try:
                obstore.head(self._opened(), key)
            except FileNotFoundError:
                return False
            return True

    def keys(self, under: str = "") -> Iterator[str]:
        """As `Folder.keys`."""
        with _told(self.url):
            import obstore

            for part in obstore.list(self._opened(), prefix=under.rstrip("/") or None):
                for found in part:
                    yield found["path"]

    def is_empty(self) -> bool:
        """As `Folder.is_empty`."""
        return next(self.keys(), None) is None

    def entries(self) -> list[str]:
        """As `Folder.entries`."""
        with _told(self.url):
            import obstore

            found = obstore.list_with_delimiter(self._opened())
            files = [each["path"] for each in found["objects"]]
            return sorted(name_of(key) for key in (*files, *found["common_prefixes"]))

    def remove(self, key: str) -> None:
        """As `Folder.remove`."""
        with _told(self.url):
            import obstore

            with suppress(FileNotFoundError):
                obstore.delete(self._opened(), key)

    def clear(self, under: str = "") -> None:
        """As `Folder.clear`."""
        with _told(self.url):
            import obstore

            for part in obstore.list(self._opened(), prefix=under.rstrip("/") or None):
                obstore.delete(self._opened(), [found["path"] for found in part])

    def store(self, *, read_only: bool = False) -> Any:
        """As `Folder.store`."""
        from zarr.storage import ObjectStore

        with _told(self.url):
            return ObjectStore(self._opened(), read_only=read_only)

    def _opened(self) -> Any:
        return _opened(self.url)


def _put_new(temporary: Path, target: Path, content: bytes) -> None:
    """Give a file its name, unless that is taken: a `FileExistsError`.

    A link fails where its name is taken, and shows the whole file. Where a file system knows no
    links (exFAT, some of networks), the file is made, empty, by whoever is first, then filled.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with target.open("xb") as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:
                target.unlink(missing_ok=True)
                raise


_stores: dict[str, Any] = {}


def _opened(url: str) -> Any:
    if url not in _stores:
        from obstore.store import from_url

        options: dict[str, Any] = {}
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        if url.startswith("s3:"):
            if endpoint:
                options["endpoint"] = endpoint
        is_plain = url.startswith("http:") or endpoint.startswith("http:")
        _stores[url] = from_url(
            url, **options, client_options={"allow_http": True} if is_plain else None
        )
    return _stores[url]


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what goes wrong at a URL into an `InputError` of one line."""
    try:
        yield
    except (InputError, FileNotFoundError, FileExistsError):
        raise
    except ImportError as error:
        raise InputError(
            f"{url}: URLs need the package obstore: pip install 'unet-repro[cloud]'"
        ) from error
    except Exception as error:  # those of obstore have no base of their own in all its versions
        if isinstance(error, (OSError, ValueError)) or type(error).__module__.startswith("obstore"):
            words = " ".join(str(error).split())
            cause = re.sub(r"Debug source:.*", "", words)[:300] or type(error).__name__
            public = ""
            if url.startswith("s3:") and not os.environ.get("AWS_ACCESS_KEY_ID"):
                public = "; AWS_SKIP_SIGNATURE=true reads public data without credentials"
            raise InputError(f"{url}: cannot be reached: {cause}{public}") from error
        raise
