"""Runs one or several networks over a stream of frames: batches across files, in bounded memory.

Every batch has the same shape, so each network is compiled once; windows of frames of different
files share a batch. Frames leave in the order in which they came. What is alive at a time is what
is being prepared, the frames of one unfinished batch, and no more than `MOST_PIXELS` of either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.data.preprocessing import Prepared, Preprocessing
from cmunet_jax.predict import windows
from cmunet_jax.predict.windows import Canvas, Window
from tfds_angio.errors import UserError

MOST_PIXELS = 2**25
"""Two frames of 4096² pixels, or 128 of 512²."""
# (mirrored, quarter turns), of the square that the network sees.
VIEWS: Mapping[str, tuple[tuple[bool, int], ...]] = MappingProxyType(
    {
        "none": ((False, 0),),
        "flips": ((False, 0), (True, 0), (False, 2), (True, 2)),
        "rotations": tuple((False, turns) for turns in range(4)),
        "all": tuple((mirrored, turns) for mirrored in (False, True) for turns in range(4)),
    }
)
"""`config.tta`: none, two mirror axes, quarter turns, or both together."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Network:
    """A network with the preprocessing that it was trained with.

    Attributes:
      forward: float32 [B, S, S, 1] -> logits [B, S, S, 2].
      preprocessing: from a frame to [S, S], and back.
    """

    forward: Callable[[NDArray[np.float32]], Any]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class How:
    """How frames are run: see configs/predict.py, which has these keys."""

    batch_size: int = 8
    fit: str = "auto"
    tile: int = 0
    tta: str = "none"


@dataclass(frozen=True, eq=False)
class Frame(Generic[Owner]):
    """A frame on its way.

    Attributes:
      owner: what it belongs to.
      index: of the frame in its run.
      image: grey [H, W].
    """

    owner: Owner
    index: int
    image: NDArray[np.generic]


@dataclass(eq=False)
class _Work:
    """A frame, its windows as each network sees them, and what the networks said so far."""

    frame: Frame[Any]
    prepared: list[list[tuple[Window, Prepared]]] = field(default_factory=list)
    canvases: list[Canvas] = field(default_factory=list)
    error: str = ""

    @property
    def done(self) -> bool:
        return all(canvas.missing == 0 for canvas in self.canvases)


@dataclass(frozen=True)
class Probability(Generic[Owner]):
    """What the networks say of a frame.

    Attributes:
      frame: it.
      values: probability of artery, float32 [H, W] in 0..1; None if it could not be prepared.
      error: why.
    """

    frame: Frame[Owner]
    values: NDArray[np.float32] | None
    error: str = ""


def ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    most: int,
    pixels: Callable[[Item], int],
) -> Iterator[Result]:
    """Maps in threads, in order, without running further ahead than `most` and `MOST_PIXELS`."""
    started: deque[tuple[int, Future[Result]]] = deque()
    try:
        for item in items:
            size = pixels(item)
            while started and (
                len(started) >= most or sum(s for s, _ in started) + size > MOST_PIXELS
            ):
                yield started.popleft()[1].result()
            started.append((size, pool.submit(function, item)))
            del item
        while started:
            yield started.popleft()[1].result()
    finally:
        for _, future in started:
            future.cancel()


def run(
    networks: Sequence[Network],
    frames: Iterable[Frame[Owner]],
    how: How,
    *,
    pool: ThreadPoolExecutor,
) -> Iterator[Probability[Owner]]:
    """Yields the probability of each frame: the mean of the networks', at the frame's own size.

    Raises:
      UserError: a network gives NaN or infinity.
    """
    waiting: deque[_Work] = deque()
    pending: list[deque[tuple[_Work, Window, Prepared]]] = [deque() for _ in networks]

    def prepare(frame: Frame[Owner]) -> _Work:
        return _prepare(networks, frame, how)

    def flush(least: int) -> None:
        for at, network in enumerate(networks):
            while len(pending[at]) >= least and pending[at]:
                count = min(how.batch_size, len(pending[at]))
                _run_batch(network, at, [pending[at].popleft() for _ in range(count)], how)

    def finished() -> Iterator[Probability[Owner]]:
        while waiting and waiting[0].done:
            yield _finish(waiting.popleft())

    for work in ahead(pool, prepare, frames, most=how.batch_size, pixels=_pixels):
        waiting.append(work)
        for at, parts in enumerate(work.prepared):
            pending[at].extend((work, window, part) for window, part in parts)
        work.prepared = []
        crowded = sum(_pixels(w.frame) for w in waiting) > MOST_PIXELS
        del work
        flush(1 if crowded else how.batch_size)
        yield from finished()
    flush(1)
    yield from finished()


def _pixels(frame: Frame[Any]) -> int:
    return int(frame.image.size)


def _prepare(networks: Sequence[Network], frame: Frame[Any], how: How) -> _Work:
    work = _Work(frame)
    height, width = frame.image.shape
    try:
        for network in networks:
            chain = network.preprocessing
            parts = windows.plan(height, width, chain, fit=how.fit, side=how.tile)
            image = frame.image if parts[0].whole else windows.to_grey_levels(frame.image, chain)
            work.prepared.append([(p, windows.prepare(image, p, chain)) for p in parts])
            work.canvases.append(Canvas(height, width, len(parts)))
    except UserError as error:  # of this frame; the rest goes on
        return _Work(frame, error=str(error))
    return work


def _run_batch(
    network: Network, at: int, batch: Sequence[tuple[_Work, Window, Prepared]], how: How
) -> None:
    """One batch of windows, padded with copies of the last one, through network number `at`."""
    images = np.stack([part.float() for _, _, part in batch])[..., None]
    padding = [(0, how.batch_size - len(batch))] + [(0, 0)] * 3
    margins = _margins(network, np.pad(images, padding, mode="edge"), VIEWS[how.tta])
    if not np.isfinite(margins[: len(batch)]).all():
        raise UserError(
            "the network gives NaN or infinity: its training has diverged, use an earlier "
            "checkpoint (--config.step)"
        )
    for (work, window, part), margin in zip(batch, margins):
        native = windows.restore(margin, part, window, network.preprocessing)
        work.canvases[at].add(window, native)


def _margins(
    network: Network, images: NDArray[np.float32], views: Sequence[tuple[bool, int]]
) -> NDArray[np.float32]:
    """Artery logit minus background logit [B, S, S], the mean over the views.

    The mean is of logits, as in nnU-Net's mirroring (Isensee et al., Nature Methods 2021).
    """
    total = np.zeros(images.shape[:3], np.float32)
    for mirrored, turns in views:
        seen = images[:, :, ::-1] if mirrored else images
        logits = np.asarray(network.forward(np.rot90(seen, turns, (1, 2))), np.float32)
        margin = np.rot90(logits[..., 1] - logits[..., 0], -turns, (1, 2))
        total += margin[:, :, ::-1] if mirrored else margin
    return np.asarray(total / len(views), np.float32)


def _finish(work: _Work) -> Probability[Any]:
    if work.error:
        return Probability(work.frame, None, work.error)
    maps = [canvas.probability() for canvas in work.canvases]
    return Probability(work.frame, maps[0] if len(maps) == 1 else np.mean(maps, axis=0))
