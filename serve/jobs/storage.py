"""Where the files of jobs are: the only module that opens, lists, measures and replaces them.

Names without a scheme are local paths. Any other address, such as `s3://bucket/in.jsonl`, belongs
to the file system of `fsspec` for its scheme. Remote files are read from copies on the local disk,
see `FetchedFiles`, and replaced by one upload of a complete local file.

An address may hold a password or a signed query. They stay inside the file system: the name of a
location, which goes into messages and into the state of jobs, has none.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec
import pyarrow as pa

from rm_core.errors import RewardError
from serve.errors import JobInputError, JobOutputError, StorageError
from serve.jobs.atomic_io import TEMP_SUFFIX, make_private_folder, open_atomic, write_atomically

ResultT = TypeVar("ResultT")

_BLOCK_BYTES = 1 << 20
_HEAD_BLOCK_BYTES = 1 << 18  # the start of a file, or the footer of a table
_FETCH_BLOCK_BYTES = 8 << 20
_RETRY_DELAYS_S = (1, 2, 4, 8, 15)
"""Pauses before the retries of a transfer, after those of the store's own client."""
_LOCAL_SCHEMES = ("file", "local")
_READ_ONLY_SCHEMES = ("http", "https")
# A put to these is visible as a whole or not at all; elsewhere a complete file is renamed.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "hf", "abfs", "abfss", "az", "oss", "r2")
_HUB_KINDS = ("datasets", "spaces", "buckets")  # models have no prefix
# Parts of 50 MB are uploaded side by side from memory: ten of them by default.
_SYSTEM_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"max_concurrency": 2},
    "s3a": {"max_concurrency": 2},
}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_CREDENTIAL_HINTS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "set HF_TOKEN, or run `hf auth login`",
}
_ETAG_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "blob_id",
    "xet_hash",
    "Content-MD5",
    "Last-Modified",
)
_QUERY = re.compile(r"\?\w[\w.%-]*=.*", re.DOTALL)
_USER_INFO = re.compile(r"(\w[\w+.-]*://)[^\s/@'\"]*@")
_QUERY_IN_TEXT = re.compile(r"\?[^\s'\"<>)\]]*=[^\s'\"<>)\]]*")


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one content of a file from another without reading it.

    Attributes:
        size: size in bytes; -1 if the file does not exist.
        mtime_ns: modification time in nanoseconds; 0 if unknown, or if there is an entity tag.
        etag: entity tag or checksum of the store; empty if there is none.
    """

    size: int
    mtime_ns: int = 0
    etag: str = ""

    @property
    def exists(self) -> bool:
        """Whether there was a file."""
        return self.size >= 0

    @property
    def is_certain(self) -> bool:
        """Whether equal states mean equal content."""
        return bool(self.mtime_ns or self.etag)


_ABSENT = FileState(-1)


class Location(ABC):
    """A file or a folder, here or elsewhere.

    Attributes:
        name: absolute path, or address without secrets; also what `str` returns.
        local_path: path on this machine; None elsewhere.
    """

    name: str
    local_path: Path | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def basename(self) -> str:
        """The last component of the name."""
        return self.name.rstrip("/").rpartition("/")[2]

    @abstractmethod
    def is_file(self) -> bool:
        """Return whether there is a regular file; a pipe is not one."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Return whether there is a folder."""

    @abstractmethod
    def measure(self) -> FileState:
        """Return the state of the file."""

    @abstractmethod
    def open(self) -> IO[bytes]:
        """Open a regular file to read its stored bytes."""

    def open_arrow(self) -> pa.NativeFile:
        """Open the file for the readers of Arrow."""
        return pa.PythonFile(self.open(), "r")

    def compute_sha256(self, num_bytes: int = sys.maxsize) -> str:
        """Return the hexadecimal SHA-256 of the file, or of its first `num_bytes` bytes."""
        with self.open() as file:
            return hash_stream(file, num_bytes)

    @abstractmethod
    def list_files(self) -> list[str]:
        """Return the relative names of all files below a folder, sorted."""

    @abstractmethod
    def child(self, name: str) -> Location:
        """Return the location of a relative name below a folder."""

    @abstractmethod
    def with_suffix(self, suffix: str) -> Location:
        """Return the file next to this one whose name is longer by `suffix`."""

    @abstractmethod
    def expand_glob(self) -> list[Location]:
        """Return the files that match this name as a pattern, sorted."""

    @abstractmethod
    def is_inside(self, folder: Location) -> bool:
        """Return whether this is `folder`, or is below it, after links are resolved."""

    @abstractmethod
    def fetch(self, folder: Path, on_block: Callable[[], None]) -> Location:
        """Return the file itself if it is local, or a copy of it in a local folder."""

    @abstractmethod
    def require_writable(self) -> None:
        """Check that a file can be created here, as far as this is known without writing.

        Raises:
            JobOutputError: the folder does not exist, or there is something other than a file.
            StorageError: the store cannot be reached.
        """

    @abstractmethod
    def get_partial_path(self, folder: Path) -> Path:
        """Return where the file is written before it is complete; `folder` is a local folder."""

    @abstractmethod
    def open_atomic(self, folder: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file that replaces this one if the block succeeds; an error changes nothing.

        Args:
            folder: local folder for a file that is uploaded at the end.
        """

    @abstractmethod
    def open_work_folder(self) -> contextlib.AbstractContextManager[Path]:
        """Open a local folder for temporary files while the file is made."""

    @abstractmethod
    def write(self, content: bytes) -> None:
        """Replace the content of the file at once."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the file, if there is one."""


def parse_location(name: str) -> Location:
    """Return the location that a path or an address means.

    Raises:
        JobInputError: no file system is known or installed for the scheme of an address.
    """
    scheme, separator, rest = name.partition("://")
    if not separator:
        return LocalFile(Path(name).absolute())
    if scheme in _LOCAL_SCHEMES:
        return LocalFile(Path("/", rest))
    try:
        system, key = fsspec.url_to_fs(name, **_SYSTEM_OPTIONS.get(scheme, {}))
    except (ValueError, ImportError) as error:
        extra = _EXTRAS.get(scheme)
        raise JobInputError(
            f"{strip_secrets(name)} cannot be opened: the package for {scheme}:// is not "
            f"installed; run pip install 'skyreward[{extra}]'"
            if extra and isinstance(error, ImportError)
            else f"{strip_secrets(name)} cannot be opened: {_scrub(str(error))}"
        ) from None
    # Clients log errors, with tracebacks, that are raised as well.
    logging.getLogger(type(system).__module__.partition(".")[0]).setLevel(logging.CRITICAL)
    return RemoteFile(strip_secrets(name), system, key)


def hash_stream(file: IO[bytes], num_bytes: int = sys.maxsize) -> str:
    """Return the hexadecimal SHA-256 of the rest of a file, or of its next `num_bytes` bytes."""
    digest = hashlib.sha256()
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
        digest.update(block)
        num_bytes -= len(block)
    return digest.hexdigest()


def strip_secrets(address: str) -> str:
    """Return an address without a password and without a query, which may be a signature."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    is_web = scheme in _READ_ONLY_SCHEMES
    if at:
        # Other schemes have names there that are not secret, such as a container of Azure.
        authority = host if is_web else f"{user.partition(':')[0]}@{host}"
    path = path.partition("?")[0].partition("#")[0] if is_web else _QUERY.sub("", path)
    return f"{scheme}://{authority}{slash}{path}"


def get_fixed_folder(pattern: str) -> str:
    """Return the leading folders of a pattern that have no special characters."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/"


def _scrub(text: str) -> str:
    """Return the message of a library in one line, without secrets of addresses in it."""
    text = " ".join(text.split())
    return _QUERY_IN_TEXT.sub("", _USER_INFO.sub(r"\1", text))


@dataclass(frozen=True)
class LocalFile(Location):
    """A path on this machine; `label` replaces the path as the name, for a copy."""

    path: Path
    label: str | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Location`."""
        return self.label or str(self.path)

    @property
    def local_path(self) -> Path | None:  # type: ignore[override]
        """See `Location`; a copy has none, because what was next to the file is not here."""
        return None if self.label else self.path

    def is_file(self) -> bool:
        """See `Location`."""
        return os.path.isfile(self.path)

    def is_folder(self) -> bool:
        """See `Location`."""
        return os.path.isdir(self.path)

    def measure(self) -> FileState:
        """See `Location`."""
        try:
            status = os.stat(self.path)
        except OSError:
            return _ABSENT
        return FileState(status.st_size, status.st_mtime_ns)

    def open(self) -> IO[bytes]:
        """See `Location`."""
        if not self.is_file():
            raise JobInputError(f"{self} is not a regular file; save its content to a file")
        return open(self.path, "rb", buffering=_BLOCK_BYTES)

    def open_arrow(self) -> pa.NativeFile:
        """See `Location`."""
        return pa.OSFile(str(self.path))

    def list_files(self) -> list[str]:
        """See `Location`; links are not followed."""
        paths = (path for path in self.path.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.path).as_posix() for path in paths)

    def child(self, name: str) -> Location:
        """See `Location`."""
        return LocalFile(self.path / name)

    def with_suffix(self, suffix: str) -> Location:
        """See `Location`."""
        return LocalFile(self.path.with_name(self.path.name + suffix))

    def expand_glob(self) -> list[Location]:
        """See `Location`."""
        names = sorted(glob.glob(str(self.path), recursive=True))
        return [LocalFile(Path(name)) for name in names if os.path.isfile(name)]

    def is_inside(self, folder: Location) -> bool:
        """See `Location`."""
        return folder.local_path is not None and self.path.resolve().is_relative_to(
            folder.local_path.resolve()
        )

    def fetch(self, folder: Path, on_block: Callable[[], None]) -> Location:
        """See `Location`."""
        return self

    def require_writable(self) -> None:
        """See `Location`."""
        if not self.path.parent.is_dir():
            raise JobOutputError(f"the folder {self.path.parent} does not exist; create it first")
        if self.path.exists() and not self.path.is_file():
            raise JobOutputError(f"{self} is not a file; give the name of a file as the output")

    def get_partial_path(self, folder: Path) -> Path:
        """See `Location`."""
        return self.path.with_name(self.path.name + TEMP_SUFFIX)

    def open_atomic(self, folder: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
        """See `Location`."""
        return open_atomic(self.path)

    def open_work_folder(self) -> contextlib.AbstractContextManager[Path]:
        """See `Location`."""
        return contextlib.nullcontext(self.path.parent)

    def write(self, content: bytes) -> None:
        """See `Location`."""
        write_atomically(self.path, content)

    def remove(self) -> None:
        """See `Location`."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteFile(Location):
    """A file or a folder in a file system of fsspec.

    Attributes:
        name: see `Location`.
        system: the file system, which has the credentials.
        key: name of the file there.
    """

    name: str
    system: Any = field(repr=False)
    key: str = field(repr=False)

    @property
    def scheme(self) -> str:
        """Scheme of the address."""
        return self.name.partition("://")[0]

    def is_file(self) -> bool:
        """See `Location`."""
        info = self._get_info()
        return info is not None and info["type"] == "file"

    def is_folder(self) -> bool:
        """See `Location`."""
        info = self._get_info()
        return info is not None and info["type"] == "directory"

    def measure(self) -> FileState:
        """See `Location`."""
        info = self._get_info()
        if info is None or info["type"] != "file":
            return _ABSENT
        size = info.get("size")
        if size is None:
            raise StorageError(
                f"{self} has no known size, so the file cannot be checked for changes; download it"
            )
        etag = next((str(info[key]) for key in _ETAG_KEYS if info.get(key)), "")
        return FileState(int(size), 0 if etag else self._get_mtime_ns(), etag)

    def open(self) -> IO[bytes]:
        """See `Location`; the file is read over the network."""
        with self._translate():
            file = self.system.open(self.key, "rb", block_size=_HEAD_BLOCK_BYTES)
        return cast(IO[bytes], io.BufferedReader(_RemoteReader(self, file), _HEAD_BLOCK_BYTES))

    def list_files(self) -> list[str]:
        """See `Location`."""
        with self._translate():
            self.system.invalidate_cache()
            return sorted(os.path.relpath(file, self.key) for file in self.system.find(self.key))

    def child(self, name: str) -> Location:
        """See `Location`."""
        folder, key = self.name.rstrip("/"), self.key.rstrip("/")
        return RemoteFile(f"{folder}/{name}", self.system, f"{key}/{name}")

    def with_suffix(self, suffix: str) -> Location:
        """See `Location`."""
        return RemoteFile(self.name + suffix, self.system, self.key + suffix)

    def expand_glob(self) -> list[Location]:
        """See `Location`."""
        with self._translate():
            self.system.invalidate_cache()
            keys = sorted(self.system.glob(self.key))
        folder, name = get_fixed_folder(self.key), get_fixed_folder(self.name)
        files = [RemoteFile(name + key.removeprefix(folder), self.system, key) for key in keys]
        return [file for file in files if file.is_file()]

    def is_inside(self, folder: Location) -> bool:
        """See `Location`."""
        if not isinstance(folder, RemoteFile) or type(folder.system) is not type(self.system):
            return False
        root = folder.key.rstrip("/")
        return self.key == root or self.key.startswith(f"{root}/")

    def fetch(self, folder: Path, on_block: Callable[[], None]) -> Location:
        """See `Location`."""
        state = self.measure()
        identity = repr((self.name, state)).encode()
        copy = folder / f"{hashlib.sha256(identity).hexdigest()[:32]}"
        if not (state.is_certain and copy.exists()):
            with open_atomic(copy) as file:
                _with_retries(lambda: self._download(file, on_block))
                if self.measure() != state or file.tell() != state.size:
                    raise StorageError(
                        f"{self} changed while it was fetched; run the same command again"
                    )
        return LocalFile(copy, self.name)

    def require_writable(self) -> None:
        """See `Location`."""
        if self.scheme in _READ_ONLY_SCHEMES:
            raise JobOutputError(
                f"{self} cannot be written, because {self.scheme}:// is only read; give a local "
                "file, or an address of a store such as s3://BUCKET/FILE"
            )
        if self.is_folder():
            raise JobOutputError(f"{self} is a folder; give the name of a file as the output")
        if self.scheme in _OBJECT_STORES:
            root = self._get_root()
            if root == self.key or self.key.endswith("/"):
                raise JobOutputError(f"{self} does not name a file; add a name after {root}/")
            try:
                exists = RemoteFile(self.name, self.system, root)._get_info() is not None
            except StorageError:  # the root may not be readable where the file is writable
                exists = True
            if not exists:
                raise JobOutputError(
                    f"{self} cannot be written, because {root} does not exist or is not visible "
                    "with these credentials; create it first, or check the address"
                )

    def get_partial_path(self, folder: Path) -> Path:
        """See `Location`."""
        return folder / f"output{TEMP_SUFFIX}"

    @contextlib.contextmanager
    def open_atomic(self, folder: Path) -> Iterator[IO[bytes]]:
        """See `Location`."""
        path = self.get_partial_path(folder)
        path.unlink(missing_ok=True)
        try:
            with path.open("xb+") as file:
                yield file
            _with_retries(lambda: self._upload(path))
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_work_folder(self) -> Iterator[Path]:
        """See `Location`."""
        with tempfile.TemporaryDirectory(prefix="skyreward-") as folder:
            yield Path(folder)

    def write(self, content: bytes) -> None:
        """See `Location`."""
        with self.open_work_folder() as folder, self.open_atomic(folder) as file:
            file.write(content)

    def remove(self) -> None:
        """See `Location`."""
        if self.measure().exists:
            with self._translate():
                self.system.rm_file(self.key)

    def _get_root(self) -> str:
        """Return the bucket, or the repository on the hub, such as `datasets/ORG/NAME`."""
        parts = self.key.split("/")
        length = 1 if self.scheme != "hf" else 3 if parts[0] in _HUB_KINDS else 2
        return "/".join(parts[:length])

    def _get_info(self) -> dict[str, Any] | None:
        with self._translate():
            # What a store says now, not what it said earlier.
            self.system.invalidate_cache()
            try:
                return cast(dict[str, Any], self.system.info(self.key))
            except FileNotFoundError:
                return None

    def _get_mtime_ns(self) -> int:
        with self._translate():
            try:
                return int(self.system.modified(self.key).timestamp() * 1e9)
            except NotImplementedError:
                return 0

    def _download(self, file: IO[bytes], on_block: Callable[[], None]) -> None:
        """Append to a file what it does not have yet."""
        with self._translate():
            source = self.system.open(self.key, "rb", block_size=_FETCH_BLOCK_BYTES)
        with contextlib.closing(source):
            while True:
                with self._translate():
                    if source.tell() != file.tell():
                        source.seek(file.tell())
                    block = source.read(_FETCH_BLOCK_BYTES)
                if not block:
                    return
                file.write(block)
                on_block()

    def _upload(self, path: Path) -> None:
        with self._translate():
            if self.scheme in _OBJECT_STORES:
                self.system.put_file(str(path), self.key)
                return
            partial = self.key + TEMP_SUFFIX
            self.system.put_file(str(path), partial)
            self.system.mv(partial, self.key)

    @contextlib.contextmanager
    def _translate(self) -> Iterator[None]:
        """Raise the errors of a store, which are of several libraries, as `StorageError`."""
        try:
            yield
        except RewardError:
            raise
        except Exception as error:
            raise _build_error(self, error) from None  # its traceback may have a signed query


class _RemoteReader(io.RawIOBase):
    """Reads a file of a store with the errors of `StorageError`."""

    def __init__(self, location: RemoteFile, file: Any) -> None:
        self._location, self._file = location, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with self._location._translate():
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input as it was when it was measured."""

    location: Location
    state: FileState

    @classmethod
    def from_location(cls, location: Location) -> InputFile:
        """Measure a file."""
        return cls(location, location.measure())

    @property
    def path(self) -> str:
        """Absolute path, or address without secrets."""
        return self.location.name

    @property
    def size(self) -> int:
        """Size in bytes; -1 if the file did not exist."""
        return self.state.size


class FetchedFiles:
    """Copies of remote files on the local disk, made when a file is first read.

    A job reads its input several times and seeks in tables. Copies are kept between runs, and are
    used only as long as the store reports the same state of the file.

    Args:
        folder: private folder for the copies, created at the first one, in a folder that exists
            then; None for a temporary folder that is removed at the end of the process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._is_kept = folder is not None
        self._locations: dict[str, Location] = {}

    @property
    def kept_folder(self) -> Path | None:
        """Folder of copies that stay when the process ends; None if there are none."""
        return self._folder if self._is_kept and self._locations else None

    def fetch(self, file: InputFile, on_block: Callable[[], None] = lambda: None) -> Location:
        """Return where to read a file.

        Args:
            file: the file.
            on_block: called from time to time while the file is copied; may raise to stop.

        Raises:
            StorageError: the file cannot be fetched.
        """
        if file.location.local_path is not None:
            return file.location
        if file.path not in self._locations:
            self._locations[file.path] = file.location.fetch(self._make_folder(), on_block)
        return self._locations[file.path]

    def clear(self) -> None:
        """Remove the copies."""
        self._locations.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="skyreward-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            make_private_folder(self._folder)
        return self._folder


def _with_retries(operation: Callable[[], ResultT]) -> ResultT:
    for delay_s in _RETRY_DELAYS_S:
        try:
            return operation()
        except StorageError as error:
            if not error.is_temporary:
                raise
        time.sleep(delay_s)
    return operation()


def _build_error(location: RemoteFile, error: Exception) -> StorageError:
    """Return the error of a job for an error of a store's client."""
    scheme = location.scheme
    reason = _scrub(str(error)) or type(error).__name__
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return StorageError(f"{location} does not exist ({reason}); check the address")
    is_refused = isinstance(error, PermissionError) or status in (401, 403)
    if is_refused or "Credential" in type(error).__name__ or reason.startswith("Forbidden"):
        hint = _CREDENTIAL_HINTS.get(_EXTRAS.get(scheme, scheme), "check the credentials")
        problem = (
            f"access to {location} was refused ({reason})"
            if is_refused
            else f"{location} needs credentials ({reason})"
        )
        return StorageError(f"{problem}; {hint}")
    if isinstance(error, NotImplementedError | ValueError | TypeError):
        return StorageError(f"{location} cannot be used ({type(error).__name__}: {reason})")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error  # of the local disk
    return StorageError(
        f"{location} cannot be reached ({type(error).__name__}: {reason}); check the network and "
        "the endpoint, then run the same command again",
        is_temporary=True,
    )
