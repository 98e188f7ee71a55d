"""Streams raw batches through Grain, for sets that do not fit on the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from cmunet_jax.data import order
from cmunet_jax.data.prepared import OnTheFly, PreparedSplit
from tfds_angio import parallel

_ENDLESS = 1 << 30  # steps; Grain wants a length


class _InOrder:
    """Row k is example ``k % batch_size`` of step ``k // batch_size``; picklable."""

    def __init__(
        self,
        rows: PreparedSplit | OnTheFly,
        seed: int,
        batch_size: int,
        share: Sequence[int],
        steps: int,
    ):
        self._rows = rows
        self._seed = seed
        self._batch_size = batch_size
        self._share = share
        self._length = steps * len(share)
        self._per_epoch = order.steps_per_epoch(len(rows), batch_size)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        step, place = divmod(int(k), len(self._share))
        epoch, within = divmod(step, self._per_epoch)
        return self._rows[int(self._order(epoch)[within * self._batch_size + self._share[place]])]

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                # reading ahead touches the next epoch while this one is still read: keep two
                for old in sorted(self._orders)[:-1]:
                    del self._orders[old]
                self._orders[epoch] = order.host_epoch_order(self._seed, epoch, len(self._rows))
            return self._orders[epoch]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_lock"], state["_orders"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"_InOrder({self._length} rows)"


def _start_worker(worker: int, workers: int) -> None:
    """A loader that opened the accelerator would take it from the training; and it ends with it."""
    del worker, workers
    parallel.end_with_parent()
    jax.config.update("jax_platforms", "cpu")


class Stream(Iterator[dict[str, np.ndarray]]):
    """An iterator over raw batches; close it, or use it as a context, to end its workers."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __next__(self) -> dict[str, np.ndarray]:
        """The batch of the next step."""
        return next(self._iterator)

    def close(self) -> None:
        """Ends threads and processes."""
        self._iterator.close()

    def __enter__(self) -> Stream:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()


def stream(
    rows: PreparedSplit | OnTheFly,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    threads: int = 2,
    share: Sequence[int] | None = None,
) -> Stream:
    """Raw batches of step ``start_step``, ``start_step + 1``, …; equal to the resident path's.

    Batch k depends on (seed, k) alone, so resuming is starting at another step, and the number of
    workers changes speed and nothing else.

    Args:
      rows: a prepared split, or one prepared on the fly.
      seed: of the run.
      batch_size: examples of the global batch.
      start_step: first step, from 0.
      steps: where the stream ends (exclusive, counted from step 0); endless for None.
      workers: processes that read and prepare; 0 for threads of this process. They are spawned,
        so a script needs ``if __name__ == '__main__':``.
      threads: reading threads a process.
      share: places in the global batch that this host reads, e.g. range(4); all for None.

    Returns:
      An iterator of dicts of numpy arrays: code uint8/uint16 [B, S, S], scale f32 [B], offset f32
      [B], mask uint8 [B, S, S] (if prepared), index int32 [B]; B the rows of this host.

    Raises:
      UserError: if the batch is larger than the set.
    """
    # Grain is imported here: a resident run does not need it.
    import grain

    share = range(batch_size) if share is None else share
    ordered = _InOrder(rows, seed, batch_size, share, _ENDLESS if steps is None else steps)
    batches = grain.MapDataset.source(ordered).batch(len(share), drop_remainder=True)
    remaining = batches.slice(slice(start_step, None))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    dataset = remaining.to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain hands its flags to its processes
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_start_worker,
        )
    return Stream(iter(dataset))
