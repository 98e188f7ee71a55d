"""Which source a result was made with."""

import functools
import os
import pathlib
import shutil
import subprocess

from cmunet_jax import __version__

_SECONDS = 10.0  # a checkout on a slow file system must not hold up a run


@functools.cache
def source() -> str:
    """'git <commit>', with ', changed' where tracked files differ; else 'cmunet-jax <version>'.

    Written beside versions, to be read; no key, digest or comparison of configs depends on it.
    """
    return of_folder(pathlib.Path(__file__).parents[2])


def of_folder(root: pathlib.Path) -> str:
    """The same for the checkout `root`; never fails."""
    released = f"cmunet-jax {__version__}"
    try:
        top, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").split("\n")
        # An installed package may lie inside the checkout of something else.
        if not os.path.samefile(top, root):
            return released
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, ValueError, subprocess.SubprocessError):
        return released
    return f"git {commit}" + (", changed" if changed else "")


def _git(root: pathlib.Path, *arguments: str) -> str:
    # A hook's GIT_DIR would speak of another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    git = shutil.which("git")
    if git is None:
        raise OSError("no git")
    return subprocess.run(
        [git, "--no-optional-locks", "-C", str(root), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
        timeout=_SECONDS,
    ).stdout.strip()
