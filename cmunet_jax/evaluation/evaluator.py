"""Measures a segmentation network on every image of a split.

The training loop and the evaluate stage both call `evaluate`, so what is watched during training
and what is reported at the end have one definition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmunet_jax.config import choose
from cmunet_jax.data.prepared import PreparedSplit
from cmunet_jax.data.preprocessing import Preprocessing
from cmunet_jax.evaluation import calibration, calibre, inference, statistics
from cmunet_jax.evaluation.calibration import Reliability
from cmunet_jax.evaluation.inference import Forward, Loaded, Reader
from cmunet_jax.evaluation.metrics import TABLE, Metric, Pair, Terms
from cmunet_jax.evaluation.paper import PAPER_TABLE
from cmunet_jax.evaluation.results import Evaluation, Picture, ranked, summarise, write
from tfds_angio.base import AngioDataset, default_workers
from tfds_angio.errors import UserError

__all__ = ["Evaluation", "evaluate", "write"]

PROTOCOLS: Mapping[str, Mapping[str, Metric]] = {"fixed": TABLE, "paper": PAPER_TABLE}
RANKING = "dice"

Measured = tuple[dict[str, Any], dict[str, Terms], Reliability | None]


def evaluate(
    forward: Forward,
    variables: Any,
    dataset: AngioDataset,
    split: str,
    preprocessing: Preprocessing,
    *,
    ids: Sequence[str] | None = None,
    batch_size: int = 8,
    metrics: Iterable[str] | None = None,
    workers: int | None = None,
    resolution: str = "native",
    protocol: str = "fixed",
    prepared: PreparedSplit | None = None,
    progress: bool = True,
    pictures: bool = True,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Measures a network on every image of a split; none is dropped.

    Args:
        forward: (variables, images float32 [B, S, S, 1]) -> logits [B, S, S, 2], channel 1 the
            artery; jitted by the caller, always called with B = `batch_size`.
        variables: handed to `forward`.
        dataset: an opened data set.
        split: its split, also 'a+b'; every image must have a mask.
        preprocessing: the one that the network was trained with.
        ids: a subset of the split, in this order; the whole split if left out.
        batch_size: B; the last batch is padded and the padding ignored.
        metrics: names from the protocol's table; if left out, all of them, and the sensitivity
            by calibre and the calibration.
        workers: threads; as many as processors if left out.
        resolution: 'native' compares at the size of the original image, with what the network did
            not see counted as background; 'network' at the size that the network sees.
        protocol: 'fixed' (`metrics.TABLE`) or 'paper' (`paper.PAPER_TABLE`).
        prepared: the images as `data.prepared.prepare` keeps them, to save preparing them; made
            of this data set with this preprocessing.
        progress: whether to show a bar.
        pictures: whether to keep the cases of `results.ranked` (one more batch).
        resamples: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: an unknown metric, protocol, resolution or id; no images; an image without a
            mask; a network that gives NaN.
    """
    table = _select(protocol, metrics)
    reader = Reader(dataset, split, preprocessing, resolution, prepared)
    positions = reader.positions(ids)
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        run = partial(inference.run, forward, variables, reader, batch_size=batch_size, pool=pool)
        measure = partial(_measure, table=table, everything=metrics is None)
        measured = _in_order(run(positions), measure, pool, ahead=2 * batch_size)
        bar = {"total": len(positions), "desc": f"evaluate {split}", "unit": "image"}
        rows, terms, parts = zip(*tqdm(measured, disable=not progress, mininterval=0.5, **bar))
        chosen = _chosen(rows, table) if pictures else {}
        # Run once more: to keep every prediction until the ranks are known would cost memory.
        outputs = run([positions[at] for at in chosen.values()])
        shown = {
            name: _picture(rows[at], loaded, logits)
            for (name, at), (loaded, logits) in zip(chosen.items(), outputs)
        }
    about = {"protocol": protocol, "subset": ids is not None, **_about(reader)}
    options: dict[str, Any] = {"batch_size": batch_size, "resamples": resamples, "seed": seed}
    summary = summarise(rows, terms, table, protocol=protocol, **options)
    if metrics is None:
        summary["calibre"] = calibre.summary(rows)
        summary["calibration"] = calibration.pooled(parts).to_dict()
    return Evaluation(list(rows), about | summary, shown)


def _about(reader: Reader) -> dict[str, Any]:
    """What was measured on, for the summary."""
    return {
        "resolution": reader.resolution,
        "dataset": {"name": reader.dataset.name, "fingerprint": reader.dataset.fingerprint},
        "split": reader.split,
        "preprocessing": reader.preprocessing.to_dict(),
    }


def _in_order(
    forwarded: Iterator[tuple[Loaded, NDArray[np.float32]]],
    measure: Callable[[Loaded, NDArray[np.float32]], Measured],
    pool: ThreadPoolExecutor,
    *,
    ahead: int,
) -> Iterator[Measured]:
    """Measures in the pool, at most `ahead` images before the one that is asked for."""
    pending: deque[Future[Measured]] = deque()
    for loaded, logits in forwarded:
        pending.append(pool.submit(measure, loaded, logits))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _measure(
    loaded: Loaded,
    logits: NDArray[np.float32],
    *,
    table: Mapping[str, Metric],
    everything: bool,
) -> Measured:
    """The row of one image, the terms of its metrics and, with everything, its reliability."""
    prediction = loaded.finish(logits)
    covered = prediction.covered
    margin = prediction.margin if "ce" in table else None
    pair = Pair(prediction.truth, prediction.mask, margin=margin, covered=covered)
    hits, height, width = pair.hits, *pair.shape
    union = pair.truth.area + pair.prediction.area - hits
    row = {
        "id": prediction.id,
        "patient": prediction.patient,
        "centre": prediction.centre,
        **{name: metric.value(pair) for name, metric in table.items()},
        "height": height,
        "width": width,
        "truth_pixels": pair.truth.area,
        "predicted_pixels": pair.prediction.area,
        "true_positives": hits,
        "false_positives": pair.prediction.area - hits,
        "false_negatives": pair.truth.area - hits,
        "true_negatives": height * width - union,
        "unseen_pixels": int(np.count_nonzero(~covered)),
        "empty": pair.empty,
    }
    terms = {name: metric.terms(pair) for name, metric in table.items() if metric.poolable}
    if not everything:
        return row, terms, None
    reliability = calibration.reliability(prediction.truth, prediction.margin)
    row |= calibre.columns(pair) | {"brier": reliability.brier, "ece": reliability.ece}
    return row, terms, reliability


def _select(protocol: str, names: Iterable[str] | None) -> dict[str, Metric]:
    choose("config.protocol", protocol, tuple(PROTOCOLS))
    table = PROTOCOLS[protocol]
    chosen = list(table) if names is None else list(dict.fromkeys(names))
    for name in chosen:
        choose("metrics", name, tuple(table))
    if not chosen:
        raise UserError(f"metrics is empty: choose from {', '.join(table)}")
    return {name: table[name] for name in chosen}


def _chosen(rows: Sequence[Mapping[str, Any]], table: Mapping[str, Metric]) -> dict[str, int]:
    """Rows of the images that are drawn, in order of Dice, or by the first metric without it."""
    name = RANKING if RANKING in table else next(iter(table))
    sign = -1 if table[name].higher_is_better else 1
    order = sorted(range(len(rows)), key=lambda at: (sign * rows[at][name], rows[at]["id"]))
    return ranked(order)


def _picture(row: Mapping[str, Any], loaded: Loaded, logits: NDArray[np.float32]) -> Picture:
    prediction = loaded.finish(logits)
    return Picture(row, prediction.image, prediction.truth, prediction.mask)
