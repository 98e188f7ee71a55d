"""Has the process's memory in large pages on Linux, where malloc must be asked for it.

A step's temporary memory goes back to the system after it, and comes anew for the next: 370,000
pages of 4 KiB for U-Net-64, which takes a seventh of the step on a CPU (docs/performance.md).
glibc reads the setting before Python starts, so a process that lacks it is replaced by itself.
"""

import os
import pathlib
import sys

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart(mode: pathlib.Path = _MODE) -> None:
    """Starts the same command anew with large pages, if that changes anything; else returns.

    The process keeps its number. A variable that the user has set, even to nothing, is left alone;
    so is a system that gives large pages to all ("always") or to nobody ("never").

    Args:
      mode: the file in which Linux says so.
    """
    if VARIABLE in os.environ or not sys.platform.startswith("linux") or not sys.executable:
        return
    try:
        if "[madvise]" not in mode.read_text() or not os.confstr("CS_GNU_LIBC_VERSION"):
            return
    except (OSError, ValueError):
        return
    os.environ[VARIABLE] = SETTING
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ours, no shell
    except OSError:
        return  # Slower, and no worse.
