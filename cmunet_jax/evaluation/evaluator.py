"""Runs a segmentation network over a split and measures every image.

The training loop and the evaluate stage both call `evaluate`, so what is watched during training
and what is reported at the end have one definition. At any time only two batches are in memory.
Threads read, restore and measure while the device computes; OpenCV, SciPy and scikit-image leave
the interpreter lock, and forking a process that runs JAX is not safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmunet_jax.data.preprocessing import Preprocessing
from cmunet_jax.evaluation import statistics
from cmunet_jax.evaluation.metrics import TABLE, Metric, Pair, Terms
from cmunet_jax.evaluation.paper import PAPER_TABLE
from cmunet_jax.evaluation.results import PICTURES, Evaluation, Picture, summarise, write
from tfds_angio.base import AngioDataset, default_workers
from tfds_angio.errors import UserError

__all__ = ["Evaluation", "Prediction", "evaluate", "predict", "write"]

PROTOCOLS: Mapping[str, Mapping[str, Metric]] = {"fixed": TABLE, "paper": PAPER_TABLE}
RESOLUTIONS = ("native", "network")
RANKING = "dice"

Forward = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, beside the truth.

    Attributes:
        id: of the image.
        patient: '' if unknown.
        centre: '' if unknown.
        image: uint8 [H, W] as a person looks at it.
        truth: bool [H, W].
        margin: artery logit minus background logit, float32 [H, W]; NaN where the network has
            not seen the image (a preprocessing may crop).
    """

    id: str
    patient: str
    centre: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    margin: NDArray[np.float32]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Where the network has seen the image, bool [H, W]."""
        return ~np.isnan(self.margin)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Artery where its logit is the larger one; background where nothing was seen."""
        return np.greater(self.margin, 0, where=self.covered, out=np.zeros(self.margin.shape, bool))


def predict(
    forward: Forward,
    variables: Any,
    dataset: AngioDataset,
    split: str,
    preprocessing: Preprocessing,
    *,
    ids: Sequence[str] | None = None,
    batch_size: int = 8,
    resolution: str = "native",
    workers: int | None = None,
) -> Iterator[Prediction]:
    """Yields the prediction for each image, in the order of `ids` or of the split.

    Args and errors as in `evaluate`.
    """
    _check_choice("resolution", resolution, RESOLUTIONS)
    positions = _positions(dataset, split, ids)
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        reader = _Reader(dataset, split, preprocessing, resolution)
        for loaded, logits in _forwarded(forward, variables, reader, positions, batch_size, pool):
            yield loaded.finish(logits)


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
    progress: bool = True,
    pictures: bool = True,
    level: float = statistics.LEVEL,
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
        metrics: names from the protocol's table; all of them if left out.
        workers: threads; as many as processors if left out.
        resolution: 'native' compares at the size of the original image, with what the network did
            not see counted as background; 'network' at the size that the network sees.
        protocol: 'fixed' (`metrics.TABLE`) or 'paper' (`paper.PAPER_TABLE`).
        progress: whether to show a bar.
        pictures: whether to keep the best, median and worst case (one more batch).
        level: coverage of the intervals.
        resamples: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: an unknown metric, protocol, resolution or id; no images; an image without a
            mask; a network that gives NaN.
    """
    _check_choice("protocol", protocol, tuple(PROTOCOLS))
    _check_choice("resolution", resolution, RESOLUTIONS)
    table = _select(PROTOCOLS[protocol], metrics)
    positions = _positions(dataset, split, ids)
    reader = _Reader(dataset, split, preprocessing, resolution)
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        forwarded = _forwarded(forward, variables, reader, positions, batch_size, pool)
        measured = list(
            tqdm(
                _in_order(forwarded, table, pool, ahead=2 * batch_size),
                total=len(positions),
                desc=f"evaluate {split}",
                unit="image",
                disable=not progress,
                mininterval=0.5,
            )
        )
        rows, terms = [row for row, _ in measured], [term for _, term in measured]
        chosen = _chosen(rows, table) if pictures else {}
        forwarded = _forwarded(
            forward, variables, reader, [positions[at] for at in chosen.values()], batch_size, pool
        )
        shown = {
            name: _picture(rows[at], loaded.finish(logits))
            for (name, at), (loaded, logits) in zip(chosen.items(), forwarded, strict=True)
        }
    summary = {
        "protocol": protocol,
        "resolution": resolution,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "split": split,
        "subset": ids is not None,
        "preprocessing": preprocessing.to_dict(),
    } | summarise(
        rows,
        terms,
        table,
        protocol=protocol,
        batch_size=batch_size,
        level=level,
        resamples=resamples,
        seed=seed,
    )
    return Evaluation(rows, summary, shown)


# ------------------------------------------------------------------------- reading, predicting


@dataclass(frozen=True)
class _Loaded:
    """One image on its way through the network; see `Prediction`."""

    example: Mapping[str, Any]
    network_input: NDArray[np.float32]
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    restore: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def finish(self, logits: NDArray[np.float32]) -> Prediction:
        """Prediction from the logits float32 [S, S, 2]."""
        if not np.isfinite(logits).all():
            raise UserError(
                f"the network gives NaN or infinity for image {self.example['id']}: "
                "its training has diverged, use an earlier checkpoint or a lower learning rate"
            )
        margin = self.restore(logits[..., 1:] - logits[..., :1])[..., 0]
        return Prediction(
            id=self.example["id"],
            patient=self.example["patient"],
            centre=self.example["centre"],
            image=self.image,
            truth=self.truth,
            margin=margin,
        )


class _Reader:
    """Position in a split -> `_Loaded`; used from several threads."""

    def __init__(
        self, dataset: AngioDataset, split: str, preprocessing: Preprocessing, resolution: str
    ):
        self.name = f"{dataset.name} {split}"
        self.source = dataset.source(split)
        self.preprocessing = preprocessing
        self.native = resolution == "native"

    def __call__(self, position: int) -> _Loaded:
        example = self.source[position]
        if not example["has_mask"]:
            raise UserError(
                f"{self.name}: image {example['id']} has no mask, so there is nothing to compare "
                "with: evaluate a labelled split (val or test)"
            )
        prepared = self.preprocessing.apply(example["image"])
        values, geometry = prepared.float(), prepared.geometry
        if self.native:
            image, truth = example["image"][..., 0], example["mask"][..., 0]
        else:
            image = np.clip(128 + 51 * values, 0, 255).astype(np.uint8)  # ±2.5 sigma
            truth = self.preprocessing.apply_mask(example["mask"], geometry)

        def restore(margin: NDArray[np.float32]) -> NDArray[np.float32]:
            if not self.native:
                return margin
            return self.preprocessing.restore(margin, geometry, fill=float("nan"))

        return _Loaded(example, values, np.asarray(image), np.asarray(truth) != 0, restore)


def _forwarded(
    forward: Forward,
    variables: Any,
    reader: _Reader,
    positions: Sequence[int],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[_Loaded, NDArray[np.float32]]]:
    """(image, logits [S, S, 2]) in order; the next batch is read while the device computes."""
    batches = [positions[at : at + batch_size] for at in range(0, len(positions), batch_size)]
    upcoming = [pool.submit(reader, position) for position in batches[0]] if batches else []
    for following in [*batches[1:], []]:
        batch = [future.result() for future in upcoming]
        upcoming = [pool.submit(reader, position) for position in following]
        images = np.stack([loaded.network_input for loaded in batch])[..., None]
        padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
        logits = forward(variables, np.pad(images, padding, mode="edge"))
        yield from zip(batch, np.asarray(logits, np.float32))


def _in_order(
    forwarded: Iterator[tuple[_Loaded, NDArray[np.float32]]],
    table: Mapping[str, Metric],
    pool: ThreadPoolExecutor,
    *,
    ahead: int,
) -> Iterator[tuple[dict[str, Any], dict[str, Terms]]]:
    """Measures in the pool, at most `ahead` images before the one that is asked for."""
    pending: deque[Future[tuple[dict[str, Any], dict[str, Terms]]]] = deque()
    for loaded, logits in forwarded:
        pending.append(pool.submit(_measure, loaded, logits, table))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _measure(
    loaded: _Loaded, logits: NDArray[np.float32], table: Mapping[str, Metric]
) -> tuple[dict[str, Any], dict[str, Terms]]:
    """The row of one image and the terms of its metrics."""
    prediction = loaded.finish(logits)
    covered = prediction.covered
    pair = Pair(prediction.truth, prediction.mask, margin=prediction.margin, covered=covered)
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
    return row, {name: metric.terms(pair) for name, metric in table.items() if metric.poolable}


# ----------------------------------------------------------------------------------- choosing


def _check_choice(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UserError(f"{what} {given!r} is unknown: choose one of {', '.join(known)}")


def _select(table: Mapping[str, Metric], names: Iterable[str] | None) -> dict[str, Metric]:
    chosen = list(table) if names is None else list(dict.fromkeys(names))
    for name in chosen:
        _check_choice("metric", name, tuple(table))
    if not chosen:
        raise UserError(f"metrics is empty: choose from {', '.join(table)}")
    return {name: table[name] for name in chosen}


def _positions(dataset: AngioDataset, split: str, ids: Sequence[str] | None) -> list[int]:
    known = {identifier: at for at, identifier in enumerate(dataset.ids(split))}
    wanted = list(known) if ids is None else list(ids)
    if not wanted:
        raise UserError(f"{dataset.name} {split}: no images to evaluate; choose another split")
    for identifier in wanted:
        if identifier not in known:
            raise UserError(f"{dataset.name}: split {split} holds no image {identifier!r}")
    if len(set(wanted)) != len(wanted):
        raise UserError(f"{dataset.name} {split}: an image is listed twice among the ids")
    return [known[identifier] for identifier in wanted]


def _chosen(rows: Sequence[Mapping[str, Any]], table: Mapping[str, Metric]) -> dict[str, int]:
    """Rows of the best, median and worst image by Dice, or by the first metric without it."""
    name = RANKING if RANKING in table else next(iter(table))
    sign = -1 if table[name].higher_is_better else 1
    order = sorted(range(len(rows)), key=lambda at: (sign * rows[at][name], rows[at]["id"]))
    return dict(zip(PICTURES, (order[0], order[len(order) // 2], order[-1])))


def _picture(row: Mapping[str, Any], prediction: Prediction) -> Picture:
    return Picture(row, prediction.image, prediction.truth, prediction.mask)
