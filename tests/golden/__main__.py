"""Compares this implementation with values of the authors' PyTorch code.

    python -m tests.golden --dir tests/golden/fixtures

One line a case: its name, how many quantities were compared, its largest error (relative; absolute
for logits) and the tolerance of that quantity. Exit status 0 only if there was a case and all pass.
"""

from __future__ import annotations

import argparse
import fnmatch
import pathlib
import sys
from types import ModuleType

import jax
import numpy as np

from tests.golden import cmunet, metrics, moco, preprocess, spark, unet
from tests.golden.case import Check

CHECKERS: tuple[ModuleType, ...] = (unet, cmunet, spark, moco, metrics, preprocess)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="folder of .npz cases")
    directory = parser.parse_args(argv).dir
    if not directory.is_dir():
        return _fail(f"{directory} is not a folder; give the folder of the .npz cases with --dir")
    checked = failed = 0
    for path in sorted(directory.glob("*.npz")):
        checkers = [m for m in CHECKERS if fnmatch.fnmatch(path.stem, m.PATTERN)]
        for checker in checkers:
            checked += 1
            failed += not run_case(path, checker)
        if not checkers:
            print(f"skip  {path.stem}: no checker for this name")
    if not checked:
        patterns = ", ".join(m.PATTERN for m in CHECKERS)
        return _fail(f"no case in {directory}: no .npz file is named like {patterns}")
    print(f"{checked - failed} of {checked} cases pass")
    return 1 if failed else 0


def run_case(path: pathlib.Path, checker: ModuleType) -> bool:
    """Checks one file, prints its line and returns whether it passed; a crash is a failure."""
    try:
        with np.load(path) as archive:
            case = {name: archive[name] for name in archive.files}
        # Accelerators would multiply float32 matrices in fewer bits than the tolerances ask for.
        with jax.default_matmul_precision("highest"):
            checks = checker.check(case, path.stem)
    except KeyError as error:
        print(f"FAIL  {path.stem}: the case or the network has no {error}")
        return False
    except Exception as error:  # Whatever breaks one case must not hide the result of the others.
        return _crashed(path.stem, error)
    if not checks:
        print(f"FAIL  {path.stem}: nothing was compared")
        return False
    print(line(path.stem, checks))
    return all(c.passed for c in checks)


def line(stem: str, checks: list[Check]) -> str:
    """The report of one case; its errors are shown at the quantity that is worst off."""
    worst = max(checks, key=lambda c: c.severity)
    failing = [c for c in checks if not c.passed]
    text = (
        f"{'FAIL' if failing else 'ok  '}  {stem}: {len(checks)} checks, largest error "
        f"{worst.error:.2e} ({worst.name}, tolerance {worst.tolerance:.0e})"
    )
    if len(failing) > 1:
        text += f"; {len(failing)} fail: {', '.join(c.name for c in failing)}"
    return text


def _crashed(stem: str, error: Exception) -> bool:
    reason = " ".join(str(error).split())[:300]
    print(f"FAIL  {stem}: could not be checked ({type(error).__name__}: {reason})")
    return False


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
