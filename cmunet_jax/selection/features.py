"""What an encoder sees of each image: one vector of unit length."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmunet_jax.data.preprocessing import Preprocessing
from cmunet_jax.selection.pool import Pool, Unreadable
from tfds_angio.base import default_workers
from tfds_angio.errors import UserError

LEVELS = ("bottleneck", "all")

Encode = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]
"""Images float32 [B, S, S, 1] -> spatial means [B, C] of each feature map, finest first."""


@dataclass(frozen=True)
class Embedded:
    """Features of the images that could be read.

    Attributes:
      pool: of those images.
      features: float64 [N, D], rows of length 1.
      sha256: of their files, '' in a data set.
      failed: (id, reason) of the others.
    """

    pool: Pool
    features: NDArray[np.float64]
    sha256: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def embed(
    encode: Encode,
    pool: Pool,
    preprocessing: Preprocessing,
    *,
    levels: str,
    batch_size: int,
    workers: int | None = None,
    progress: bool = True,
) -> Embedded:
    """Runs the encoder over the pool; images that cannot be read are left out and named.

    Threads prepare the next batch while the device computes. The last batch is padded with copies
    of its last image, so that one program serves all.

    Args:
      encode: of the checkpoint.
      pool: to embed.
      preprocessing: that of the checkpoint.
      levels: 'bottleneck', or 'all' for the five maps of the encoder.
      batch_size: images a call.
      workers: threads that read; None for as many as there are cores.
      progress: whether to draw a bar.

    Raises:
      UserError: the network gives values that are not finite.
    """
    prepare = functools.partial(prepared, pool, preprocessing)
    rows, kept, digests, failed = [], [], [], list(pool.failed)
    count = len(pool.items)
    spans = [range(at, min(at + batch_size, count)) for at in range(0, count, batch_size)]
    with ThreadPoolExecutor(workers or default_workers()) as threads:
        upcoming: list[Future] = [threads.submit(prepare, at) for at in (spans[0] if spans else ())]
        bar = tqdm(spans, desc="features", unit="batch", disable=not progress, mininterval=0.5)
        for number, span in enumerate(bar):
            made = [future.result() for future in upcoming]
            following = spans[number + 1] if number + 1 < len(spans) else ()
            upcoming = [threads.submit(prepare, at) for at in following]
            good = [(at, one) for at, one in zip(span, made) if not isinstance(one, str)]
            failed += [(pool.items[at].id, o) for at, o in zip(span, made) if isinstance(o, str)]
            if good:
                images = np.stack([one[0] for _, one in good])[..., None]
                padding = [(0, batch_size - len(good))] + [(0, 0)] * 3
                maps = encode(np.pad(images, padding, mode="edge"))
                rows.append(unit([np.asarray(m)[: len(good)] for m in maps], levels=levels))
                kept += [at for at, _ in good]
                digests += [one[1] for _, one in good]
    features = np.concatenate(rows) if rows else np.zeros((0, 1))
    if not np.isfinite(features).all():
        raise UserError(
            "the encoder gives NaN or infinity: its training has diverged, use an earlier "
            "checkpoint (config.step)"
        )
    return Embedded(pool.take(kept), features, tuple(digests), tuple(failed))


def prepared(
    pool: Pool, preprocessing: Preprocessing, position: int
) -> tuple[NDArray[np.float32], str] | str:
    """An image as the network sees it, [S, S], with the SHA-256 of its file; or why not."""
    try:
        picture = pool.read(position)
        return preprocessing.apply(picture.image).float(), picture.sha256
    except (Unreadable, UserError) as error:
        return str(error)


def unit(maps: Sequence[NDArray[np.float32]], *, levels: str) -> NDArray[np.float64]:
    """Joins the means [B, C] of the maps into vectors of length 1, float64 [B, D].

    With 'all' each map counts the same: its part is normalised before they are joined.
    """
    used = maps if levels == "all" else maps[-1:]
    parts = [_normalise(np.asarray(part, np.float64)) for part in used]
    return _normalise(np.concatenate(parts, axis=1))


def _normalise(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a row of zeros, which has no direction, stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
