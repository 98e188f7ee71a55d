"""How a path that a user gives becomes absolute."""

import os
from pathlib import Path


def absolute(path: str | Path) -> Path:
    """The absolute path, without '~' and '..', whether or not anything is there.

    TensorStore refuses paths with '..'. Only these are resolved, as the system would do it: the
    folder above a link is that of its target. Any other link keeps the name that the user gave it.
    A URL is no path: the caller keeps it.
    """
    whole = Path(os.path.expanduser(path)).absolute()
    return Path(os.path.realpath(whole)) if ".." in whole.parts else whole
