"""Opens files that a document names, and none outside the document's folder.

Whoever can write into the folder can put a link in the place of a file or a folder at any moment,
also between looking at it and opening it. So what is opened is reached part by part from the folder
itself, each part relative to the descriptor of the one before and never through a link. Links that
stay inside the folder are resolved first, and are legal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import stat
from collections.abc import Iterator
from io import BufferedReader

# Windows has neither: there, folders are looked at before each use, and that is all.
DESCRIPTORS = hasattr(os, "O_NOFOLLOW") and (
    {os.link, os.mkdir, os.open, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
)
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# O_PATH needs no permission to list a folder, which opening what lies in it does not, either.
_WAY = getattr(os, "O_DIRECTORY", 0) | _PLAIN | getattr(os, "O_PATH", 0)
_LINK = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


class Unreadable(Exception):
    """What cannot be shown; the message is the reason, with no path but the one in the document."""


class Linked(OSError):
    """There is a link in the place of a folder; `filename` is its path."""


class Folder:
    """A folder that stays the one it was when it was opened, whatever takes its place.

    Names are those of what lies in it, without '/'. No link is followed by any method but `holds`.
    """

    def __init__(self, path: pathlib.Path, number: int | None) -> None:
        self.path = path
        self._number = number

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Folder]:
        """A folder in it.

        Raises:
          Linked: a link is in its place.
          OSError: it cannot be opened.
        """
        with _folder(self.path / name, self._at(name), self._number) as found:
            yield found

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """As `os.open`."""
        return os.open(self._at(name), flags | _PLAIN, mode, dir_fd=self._number)

    def create(self, name: str) -> int:
        """A new file to write; what has its name already is neither opened nor followed."""
        return self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def mkdir(self, name: str) -> None:
        """Makes a folder, unless something of that name is there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._at(name), dir_fd=self._number)

    def holds(self, name: str, *, links: bool = False) -> bool:
        """Whether something of that name is there; `links`: also a link that leads nowhere."""
        try:
            os.stat(self._at(name), dir_fd=self._number, follow_symlinks=not links)
        except (OSError, ValueError):
            return False
        return True

    def replace(self, name: str, by: str) -> None:
        """Puts file `by` in the place of `name`, whatever was there."""
        fd = self._number
        os.replace(self._at(by), self._at(name), src_dir_fd=fd, dst_dir_fd=fd)

    def link(self, name: str, to: str) -> None:
        """Gives file `to` the second name `name`.

        Raises:
          FileExistsError: something has that name.
        """
        fd = self._number
        follow = fd is None  # where nothing else is possible
        os.link(self._at(to), self._at(name), src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=follow)

    def unlink(self, name: str) -> None:
        """Removes a file."""
        os.unlink(self._at(name), dir_fd=self._number)

    def _at(self, name: str) -> str:
        return str(self.path / name) if self._number is None else name


@contextlib.contextmanager
def folder(path: pathlib.Path) -> Iterator[Folder]:
    """Opens a folder by its path, of which only the last part may be no link.

    Raises:
      Linked: a link is in its place.
      OSError: it cannot be opened.
    """
    with _folder(path, str(path), None) as found:
        yield found


@contextlib.contextmanager
def _folder(path: pathlib.Path, name: str, beside: int | None) -> Iterator[Folder]:
    if not DESCRIPTORS:
        if path.is_symlink():
            raise Linked(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        yield Folder(path, None)
        return
    try:
        number = os.open(name, os.O_RDONLY | _WAY, dir_fd=beside)
    except OSError as error:
        # A file in the place of a folder is told from a link only by looking at it again.
        if error.errno in _LINK and _is_link(name, beside):
            raise Linked(error.errno, error.strerror, str(path)) from None
        raise
    try:
        yield Folder(path, number)
    finally:
        os.close(number)


def _is_link(name: str, beside: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=beside, follow_symlinks=False).st_mode)
    except OSError:
        return False


def locate(root: pathlib.Path, name: object) -> pathlib.Path:
    """The real path of a regular file below `root`.

    The document may be hostile, and links may have changed since it was read, so this is asked
    anew for every file that is opened.

    Args:
      root: the folder that holds the document, resolved.
      name: relative to it, with '/' between the parts, as the document says.

    Raises:
      Unreadable: no text, absolute, with '..', led out of the folder by a link, absent, or no
        regular file.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        raise Unreadable("a path is missing or is no text of 1 to 512 characters")
    shown = repr(name[:80])
    parts = name.split("/")
    foreign = any(part in ("", ".", "..") for part in parts) or not name.isprintable()
    # A backslash and a colon lead elsewhere on Windows only, and belong to no name that we write.
    if foreign or "\\" in name or ":" in name:
        raise Unreadable(f"{shown} is no path inside the folder")
    return inside(root, root.joinpath(*parts), shown)


def inside(home: pathlib.Path, path: pathlib.Path, shown: str) -> pathlib.Path:
    """The real path of a regular file that lies in `home` once all links are followed.

    Args:
      home: a folder, resolved.
      path: of the file, as it was found.
      shown: what a message calls it.

    Raises:
      Unreadable: led out of the folder by a link, absent, or no regular file.
    """
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        raise Unreadable(f"{shown} does not exist") from None
    if not real.is_relative_to(home):
        raise Unreadable(f"{shown} leads out of the folder")
    if not stat.S_ISREG(mode):
        raise Unreadable(f"{shown} is not a file")
    return real


def opened(home: pathlib.Path, path: pathlib.Path, shown: str) -> BufferedReader:
    """Opens for reading what `inside` finds, and nothing that has taken its place since.

    Args:
      home: a folder, resolved.
      path: of the file, as it was found.
      shown: what a message calls it.

    Raises:
      Unreadable: as `inside`, or the system refuses.
    """
    real = inside(home, path, shown)
    *parents, last = real.relative_to(home).parts
    try:
        with contextlib.ExitStack() as stack:
            here = stack.enter_context(folder(home))
            for parent in parents:
                here = stack.enter_context(here.folder(parent))
            # Opening a pipe would wait for whoever writes into it.
            number = here.open(last, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if isinstance(error, Linked) or error.errno in _LINK:
            raise Unreadable(f"{shown} leads out of the folder") from None
        raise Unreadable(f"{shown} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise Unreadable(f"{shown} is not a file")
    return os.fdopen(number, "rb")


def read(root: pathlib.Path, name: object, *, limit: int) -> bytes:
    """The bytes of a file below `root`, at most `limit` of them.

    Raises:
      Unreadable: as `locate`, or too large, or the system refuses.
    """
    path = locate(root, name)
    try:
        with opened(root, path, repr(name)) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"{name!r} cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise Unreadable(f"{name!r} is larger than {limit / 1e6:.0f} MB")
    return data
