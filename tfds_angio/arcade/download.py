"""Fetches the official archive, with its checksum."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import auto as tqdm_auto

from tfds_angio.errors import UserError

URL = "https://zenodo.org/records/10390295/files/arcade.zip"
# SHA-256 as published with the torch-em library; checksums.txt has the same in sha256sum's format.
SHA256 = "a396cdea7c92c55dc97bbf3dd8e3df517d76872b289a8bcb45513bdb3350837f"
_CHUNK = 1 << 20


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, path: Path, progress: bool) -> None:
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not fetched: only https is")
    with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:  # noqa: S310
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm_auto.tqdm(
            total=size, desc=path.stem, unit="B", unit_scale=True, disable=not progress
        ) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def download(
    directory: Path, *, progress: bool = True, url: str = URL, sha256: str = SHA256
) -> Path:
    """Path of the verified archive in `directory`, fetched when it is not there yet.

    Raises:
      UserError: no network, or content that differs from the checksum.
    """
    path = directory / "arcade.zip"
    if path.is_file() and _sha256(path) == sha256:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"arcade.zip.part{os.getpid()}")
    try:
        _fetch(url, partial, progress)
        found = _sha256(partial)
        if found != sha256:
            raise UserError(
                f"{url} has SHA-256 {found}, expected {sha256}: a damaged download or a new "
                "version; fetch it yourself and give --source"
            )
        partial.replace(path)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"{url} cannot be fetched ({error}); fetch it elsewhere and give --source PATH"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path
