"""Opens files that a document names, and none outside the document's folder."""

from __future__ import annotations

import pathlib
import stat


class Unreadable(Exception):
    """What cannot be shown; the message is the reason, with no path but the one in the document."""


def locate(root: pathlib.Path, name: object) -> pathlib.Path:
    """The real path of a regular file below `root`.

    The document may be hostile, and links may have changed since it was read, so this is asked
    anew for every file that is opened.

    Args:
      root: the folder that holds the document.
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
    home = root.resolve()
    return inside(home, home.joinpath(*parts), shown)


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


def read(root: pathlib.Path, name: object, *, limit: int) -> bytes:
    """The bytes of a file below `root`, at most `limit` of them.

    Raises:
      Unreadable: as `locate`, or too large, or the system refuses.
    """
    path = locate(root, name)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"{name!r} cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise Unreadable(f"{name!r} is larger than {limit / 1e6:.0f} MB")
    return data
