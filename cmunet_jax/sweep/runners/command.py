"""The command line of one worker, made from the command line that starts a sweep."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import ml_collections

from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.records import BLOCKED, DONE, FAILED, Records
from cmunet_jax.sweep.store import LocalStore, Store, open_store
from tfds_angio.errors import UserError

# Keys that say how workers are started, and what is done once before.
_OF_RUNNERS = ("runner", "slurm", "kubernetes", "tpu_vm", "retry_failed")


def worker_arguments(
    argv: Sequence[str], *, workdir: str, values: Mapping[str, str] | None = None
) -> list[str]:
    """Returns the arguments of `python -m cmunet_jax.main` for a worker of the same sweep.

    Every worker gets the same: which trial it does is decided by claims, not by a number.

    Args:
      argv: arguments of this process without the program's name, as in `sys.argv[1:]`.
      workdir: the sweep's folder or bucket as the worker sees it.
      values: of config keys that differ where the worker is, such as {'data.dir': '/data'}; empty
        ones keep what argv says.

    Raises:
      UserError: if argv names no config.
    """
    changed = {key: value for key, value in (values or {}).items() if value}
    kept: list[str] = []
    for name, value in _flags(argv):
        key = name.removeprefix("no").removeprefix("config.")
        if name == "workdir" or key.split(".")[0] in _OF_RUNNERS or key in changed:
            continue
        kept.append(f"--{name}" if value is None else f"--{name}={value}")
    if not any(text.startswith("--config=") for text in kept):
        raise UserError("--config is missing. Start with: --config configs/sweep.py")
    return [
        *kept,
        *(f"--config.{key}={value}" for key, value in changed.items()),
        f"--workdir={workdir}",
        "--config.runner=worker",
    ]


def _flags(argv: Sequence[str]) -> list[tuple[str, str | None]]:
    """(name, value) of each flag; `--name value` and `--name=value` are the same."""
    flags: list[tuple[str, str | None]] = []
    for text in argv:
        if text.startswith("-"):
            name, equals, value = text.lstrip("-").partition("=")
            flags.append((name, value if equals else None))
        elif flags and flags[-1][1] is None:
            flags[-1] = (flags[-1][0], text)
        else:
            raise UserError(f"argument '{text}' is not understood: a flag starts with --.")
    return flags


def of_checkout(arguments: Sequence[str], checkout: pathlib.Path) -> list[str]:
    """Returns `arguments` with the path of the config relative to the checkout.

    Raises:
      UserError: if the config lies outside, because only the checkout is brought to the workers.
    """
    found = []
    for text in arguments:
        if text.startswith("--config="):
            path, colon, arg = text.removeprefix("--config=").partition(":")
            inside = os.path.relpath(checkout / path, checkout)
            if inside.startswith(".."):
                raise UserError(
                    f"--config {path} lies outside of {checkout}, and only what is in there is "
                    "brought to the workers. Put it into configs/."
                )
            text = f"--config={inside}{colon}{arg}"
        found.append(text)
    return found


def check_name(key: str, value: str, pattern: str, example: str) -> str:
    """Returns `value` if all of it matches the regular expression `pattern`.

    Raises:
      UserError: naming the key and an example.
    """
    if not re.fullmatch(pattern, value):
        raise UserError(f"config.{key}='{value}' is not possible here. Write it like {example}.")
    return value


def count_workers(key: str, trials: int, most: int) -> int:
    """Returns how many workers to start for `trials` trials that are not done.

    Raises:
      UserError: if `most` is not positive.
    """
    if most < 1:
        raise UserError(f"config.{key}={most} must be at least 1.")
    return max(1, min(trials, most))


def launch_folder(workdir: pathlib.Path | str, name: str) -> pathlib.Path:
    """Returns where scripts are written: in the sweep's folder, for a bucket in runs/ here."""
    store = open_store(workdir)
    if store.local:
        return store.local / name
    return pathlib.Path("runs", store.url.rsplit("/", 1)[-1], name).absolute()


def write_text(path: pathlib.Path, text: str, *, executable: bool = False) -> None:
    """Writes a script whole or not at all.

    Raises:
      StorageError: if the folder cannot be written.
    """
    LocalStore(path.parent).write(path.name, text.encode())
    path.chmod(0o755 if executable else 0o644)


def trials_left(plan: Sequence[Trial], config: ml_collections.ConfigDict, store: Store) -> int:
    """Returns how many trials are to be done; says so where there are none.

    Failed ones get their new chance here, once: a worker would repeat that at every start.
    """
    data = {"name": config.data.name, "fingerprint": config.fingerprint}
    records = Records(store, data, mend=False)
    if config.retry_failed:
        records.forget_failures(plan)
    states = records.states(plan).values()
    left = sum(state.status not in (DONE, FAILED, BLOCKED) for state in states)
    if not left:
        bad = sum(state.status != DONE for state in states)
        hint = f" {bad} failed: --config.retry_failed=True tries them again." if bad else ""
        print(f"Every trial has ended, so there is nothing to start.{hint}")
    return left
