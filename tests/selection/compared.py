"""Evaluations of several choices of labels, set against the first: the table of docs/select.md.

    python -m tests.selection.compared random='runs/random*/tuned/evaluation-val' \
        typiclust='runs/typiclust*/tuned/evaluation-val'

Each argument is a name and a glob of folders of `configs/evaluate.py`, each with a cases.csv of the
same images. Prints of each name the mean Dice, that of single runs, and the difference to the first
name with its 95 % interval, over images and runs and over images alone.
"""

from __future__ import annotations

import argparse
import glob
import pathlib

import numpy as np

from cmunet_jax.evaluation import repeated, results, statistics

SEED = 0


def read(pattern: str) -> tuple[list[str], list[str], np.ndarray]:
    """Ids and patients [N] of the images, and the Dice [R, N] of each run."""
    folders = sorted(glob.glob(pattern))
    if not folders:
        raise SystemExit(f"{pattern} matches no folder")
    runs = [results.read_cases(pathlib.Path(folder, results.CASES)) for folder in folders]
    ids = [row["id"] for row in runs[0]]
    if any([row["id"] for row in run] != ids for run in runs):
        raise SystemExit(f"{pattern}: the evaluations are not of the same images")
    if len(runs) < 2:
        raise SystemExit(f"{pattern}: one run says nothing of how runs vary")
    dice = np.array([[row["dice"] for row in run] for run in runs], float)
    return ids, [row["patient"] for row in runs[0]], dice


def difference(
    values: np.ndarray, baseline: np.ndarray, clusters: statistics.Clusters, *, runs: bool
) -> tuple[float, float, float]:
    """Mean of `values` minus that of `baseline`, and its 95 % interval.

    Images are resampled, the same of both. With `runs` the mean of each varies as well, as
    Student's t with (runs − 1) degrees of freedom around itself, by itself.

    Args:
        values: [R, N], finite.
        baseline: [S, N] of the same images.
        clusters: of the images.
        runs: whether runs vary.
    """
    both = np.stack([values.mean(0), baseline.mean(0)], axis=-1)[None]
    means = repeated.resampled_means(both, clusters, [0], seed=SEED)
    varied = means[:, 0] - means[:, 1]
    if runs:
        rng = np.random.default_rng(SEED)
        for table, sign in ((values, 1), (baseline, -1)):
            each = table.mean(1)
            spread = each.std(ddof=1) / np.sqrt(len(each))
            varied = varied + sign * spread * rng.standard_t(len(each) - 1, len(varied))
    low, high = repeated.interval(varied[:, None])
    return float(values.mean() - baseline.mean()), float(low[0]), float(high[0])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.selection.compared")
    parser.add_argument("groups", nargs="+", metavar="NAME=GLOB", help="the baseline first")
    tables = {}
    for group in parser.parse_args(argv).groups:
        name, _, pattern = group.partition("=")
        ids, patients, tables[name] = read(pattern)
        first = tables.setdefault("", tables[name])
        if first is tables[name]:
            known, clusters = ids, statistics.cluster(patients)
        elif ids != known:
            raise SystemExit(f"{name} was evaluated on other images than the first")
    baseline = tables.pop("")
    for name, dice in tables.items():
        each = dice.mean(1)
        span = f"{each.min():.3f} to {each.max():.3f}"
        line = f"{name}: {len(each)} runs, Dice {each.mean():.3f} ({span})"
        if dice is not baseline:
            for what, runs in (("images and runs", True), ("images alone", False)):
                mean, low, high = difference(dice, baseline, clusters, runs=runs)
                line += f"; {mean:+.3f} ({low:+.3f} to {high:+.3f}) over {what}"
        print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
