"""A clu MetricWriter for TensorBoard event files, over tensorboardX: no TensorFlow.

Events are written synchronously with tensorboardX's protocol buffers and record writer; its own
SummaryWriter queues them for a thread, in which errors and the last events are lost.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu.metric_writers.interface import Array, Scalar
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from cmunet_jax.train.pictures import grid
from cmunet_jax.train.sink import Sink
from tfds_angio.errors import UserError


class TensorBoardWriter(Sink):
    """Scalars, image grids, texts, histograms and hyper-parameters in one event file a run."""

    def __init__(self, logdir: str | Path, *, start_step: int | None = None):
        """Opens a new event file.

        Args:
          logdir: folder of the event files.
          start_step: the step a resumed run continues from; TensorBoard then hides the events of
            later steps that an earlier, interrupted run left in this folder.

        Raises:
          UserError: if the folder cannot be written.
        """
        self._logdir = Path(logdir)
        self._closed = False
        try:
            self._logdir.mkdir(parents=True, exist_ok=True)
            resumed = any(self._logdir.glob("events.out.tfevents.*"))
            # The suffix separates files that are opened within one second.
            suffix = f".{os.getpid()}.{time.monotonic_ns()}"
            self._events = EventsWriter(str(self._logdir / "events"), suffix)
        except OSError as error:
            raise self._failure(error) from error
        if resumed and start_step is not None:
            log = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step + 1, session_log=log))

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Writes one point of each curve."""
        for name, value in scalars.items():
            point = Summary.Value(tag=name, simple_value=float(np.asarray(value).item()))
            self._add(step, Summary(value=[point]))
        self.flush()

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Writes each name's images ([N, H, W, C] or [H, W, C], see pictures.grid) as one grid."""
        for name, values in images.items():
            pixels = grid(values)
            layout = "HW" if pixels.ndim == 2 else "HWC"
            self._add(step, summary.image(name, pixels, dataformats=layout))
        self.flush()

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, which TensorBoard renders as Markdown."""
        for name, text in texts.items():
            self._add(step, summary.text(name, text))
        self.flush()

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Array],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Writes histograms of the finite values of each array; empty ones are left out."""
        for name, array in arrays.items():
            values = np.asarray(array, np.float64)
            values = values[np.isfinite(values)]
            if values.size:
                bins = (num_buckets or {}).get(name) or 30
                self._add(step, summary.histogram(name, values, bins=bins))
        self.flush()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes hyper-parameters for TensorBoard's table; nested mappings get dotted names."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in _flat(hparams).items()
            if value is not None
        }
        for part in summary.hparams(plain, {}):
            self._add(0, part)
        self.flush()

    def write_summaries(
        self, step: int, values: Mapping[str, Array], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Not supported: raw tensors need TensorFlow's summary plugins."""
        raise NotImplementedError("raw summaries: use scalars, images, texts or histograms")

    def write_videos(self, step: int, videos: Mapping[str, Array]) -> None:
        """Not supported."""
        raise NotImplementedError("videos: write their frames as images")

    def write_audios(self, step: int, audios: Mapping[str, Array], *, sample_rate: int) -> None:
        """Not supported."""
        raise NotImplementedError("audio is not supported")

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        try:
            self._events.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Flushes and closes the file; further calls do nothing."""
        if not self._closed:
            self.flush()
            self._events.close()
            self._closed = True

    def _add(self, step: int, value: Summary) -> None:
        self._write(Event(wall_time=time.time(), step=int(step), summary=value))

    def _write(self, event: Event) -> None:
        try:
            self._events.write_event(event)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write TensorBoard events to {self._logdir}: {error.strerror or error}. "
            "Free space or make the workdir writable."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
