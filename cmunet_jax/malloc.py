"""Sets up glibc's malloc for the process, which reads its settings before Python starts.

Large pages: a step's temporary memory goes back to the system after it, and comes anew for the
next: 370,000 pages of 4 KiB for U-Net-64, which takes a seventh of the step on a CPU. Few arenas:
each save of a checkpoint has new threads, and of eight arenas a core each keeps a little of what
has passed through it; memory then grows from save to save (docs/performance.md has both).

So a process that lacks the settings is replaced by itself.
"""

import os
import sys
from collections.abc import Sequence

VARIABLE = "GLIBC_TUNABLES"
_TAKE_VALUES = ("-W", "-X")


def settings() -> str:
    """The value of GLIBC_TUNABLES: large pages, and as many arenas as this process has cores."""
    return f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={max(len(os.sched_getaffinity(0)), 2)}"


def restart(module: str) -> None:
    """Starts the command `python -m MODULE` that runs now anew, with the settings; or returns.

    The process keeps its number. A variable that the user has set, even to nothing, is left alone;
    so is a process that runs the module in any other way (a debugger, a session, a script that is
    read from a pipe), where starting anew would lose what it has done, and a system without glibc.

    Args:
      module: 'package.module'.
    """
    if VARIABLE in os.environ or not sys.platform.startswith("linux") or not sys.executable:
        return
    if sys.flags.interactive or not _runs(sys.orig_argv[1:], module):
        return
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return
    except (OSError, ValueError):
        return
    os.environ[VARIABLE] = settings()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ours, no shell
    except OSError:
        return  # Slower, and no worse.


def _runs(arguments: Sequence[str], module: str) -> bool:
    """Whether the arguments of Python are options and then `-m MODULE`."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "-m":
            return next(rest, "") == module
        if not argument.startswith("-") or argument == "-":
            return False
        if argument in _TAKE_VALUES:
            next(rest, "")
    return False
