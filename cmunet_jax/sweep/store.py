"""Where a sweep is kept: one small interface over a local folder and an object store.

Workers share nothing but a store, so everything that two of them could do at once goes through
`create`, which exactly one of them can do. Object stores are reached through fsspec, whose
`pipe_file(mode='create')` is conditional on the server (gcsfs, s3fs) since release 2024.10.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol

from tfds_angio.errors import UserError
from tfds_angio.paths import absolute

# Errors of a file system that another trial would meet too: no fault of the one that met them.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_EXISTS = (409, 412, "409", "412", "PreconditionFailed")


class StorageError(UserError):
    """The store cannot be written; nothing that was finished is lost."""


class Store(Protocol):
    """Files by name ('trials/ab/result.json'); every write is whole or absent."""

    url: str
    local: Path | None  # the folder, where the store is one

    def create(self, name: str, content: bytes) -> bool:
        """Writes a new file; False if there is one already. Exactly one of many callers wins."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, replacing what was there. StorageError if that is not possible."""

    def read(self, name: str) -> bytes | None:
        """Returns the content, or None where there is no such file."""

    def names(self, folder: str) -> list[str]:
        """Returns the sorted names of what lies directly in a folder; [] if there is none."""

    def rename(self, name: str, new: str) -> None:
        """Moves a file; nothing happens where another has moved it meanwhile."""

    def remove(self, folder: str) -> None:
        """Deletes a folder with all that is in it; nothing happens where there is none."""

    def upload(self, source: Path, name: str) -> None:
        """Copies a local folder or file into the store."""

    def download(self, name: str, target: Path) -> bool:
        """Copies a folder out of the store; False if there is none."""


def open_store(place: str | Path) -> Store:
    """Opens the store at a folder or a URL such as gs://bucket/sweep.

    Raises:
      UserError: if the URL's kind of store has no driver here.
    """
    text = str(place)
    return ObjectStore(text) if "://" in text else LocalStore(absolute(text))


def _failure(where: object, error: OSError) -> StorageError:
    return StorageError(
        f"{where} cannot be written: {error.strerror or error}. Finished trials are kept: free "
        "space or make the folder writable, and run the same command again."
    )


class LocalStore:
    """A folder, on one machine or shared by many."""

    def __init__(self, folder: Path):
        self.url = str(folder)
        self.local: Path | None = folder
        self._folder = folder

    def create(self, name: str, content: bytes) -> bool:
        """See Store. A link to a complete file appears at once and fails where one exists."""
        path = self._folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self._put(temporary, content)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._exclusive(path, content)
            return True
        except OSError as error:
            raise _failure(path, error) from error
        finally:
            with contextlib.suppress(OSError):  # Hidden and harmless where it cannot be removed.
                temporary.unlink(missing_ok=True)

    def _exclusive(self, path: Path, content: bytes) -> bool:
        """For file systems without hard links."""
        try:
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def _put(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, content: bytes) -> None:
        """See Store."""
        path = self._folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self._put(temporary, content)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):  # The message below matters more than a leftover.
                temporary.unlink(missing_ok=True)
            raise _failure(path, error) from error

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        """See Store."""
        try:
            found = os.listdir(self._folder / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.startswith("."))

    def rename(self, name: str, new: str) -> None:
        """See Store."""
        try:
            with contextlib.suppress(FileNotFoundError):  # another runner was faster
                os.replace(self._folder / name, self._folder / new)
        except OSError as error:
            raise _failure(self._folder / new, error) from error

    def remove(self, folder: str) -> None:
        """See Store."""
        shutil.rmtree(self._folder / folder, ignore_errors=True)

    def upload(self, source: Path, name: str) -> None:
        """See Store. Nothing to do where the source is the place itself."""
        target = self._folder / name
        if source.absolute() == target:
            return
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            self.write(name, source.read_bytes())

    def download(self, name: str, target: Path) -> bool:
        """See Store."""
        source = self._folder / name
        if not source.exists():
            return False
        if source != target.absolute():
            shutil.copytree(source, target, dirs_exist_ok=True)
        return True


class ObjectStore:
    """Anything that fsspec reaches; objects appear whole, folders are only prefixes."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        self.local: Path | None = None
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be opened: {error}") from None
        self._fs: Any = fs
        self._root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def create(self, name: str, content: bytes) -> bool:
        """See Store. The winner is who reads back what it wrote: some drivers check before."""
        path = self._path(name)
        try:
            self._fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if getattr(error, "code", None) in _EXISTS:
                return False
            raise self._failed(path, error) from error
        return self.read(name) == content

    def write(self, name: str, content: bytes) -> None:
        """See Store."""
        path = self._path(name)
        try:
            self._fs.pipe_file(path, content)
        except Exception as error:
            raise self._failed(path, error) from error

    def _failed(self, path: str, error: Exception) -> StorageError:
        wrapped = error if isinstance(error, OSError) else OSError(str(error))
        return _failure(self._fs.unstrip_protocol(path), wrapped)

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            return self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """See Store."""
        self._fs.invalidate_cache()  # Another worker may have written since.
        try:
            found = self._fs.ls(self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {path.rstrip("/").rsplit("/", 1)[-1] for path in found}
        return sorted(name for name in names if not name.startswith("."))

    def rename(self, name: str, new: str) -> None:
        """See Store."""
        with contextlib.suppress(FileNotFoundError):  # another runner was faster
            self._fs.mv(self._path(name), self._path(new))

    def remove(self, folder: str) -> None:
        """See Store."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):  # Never there, or another was faster.
            self._fs.rm(self._path(folder), recursive=True)

    def upload(self, source: Path, name: str) -> None:
        """See Store."""
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
        for file in sorted(files):
            part = "" if file == source else "/" + file.relative_to(source).as_posix()
            self.write(name + part, file.read_bytes())

    def download(self, name: str, target: Path) -> bool:
        """See Store."""
        root = self._path(name)
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(root)
        except FileNotFoundError:
            return False
        for path in found:
            place = target / path[len(root.rstrip("/")) + 1 :]
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.part")
            temporary.write_bytes(self._fs.cat_file(path))
            os.replace(temporary, place)
        return bool(found)
