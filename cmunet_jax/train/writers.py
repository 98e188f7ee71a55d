"""One writer for all that a run reports: TensorBoard, metrics.jsonl, PNG pictures, the console."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from clu import metric_writers
from clu.metric_writers.interface import Scalar

from cmunet_jax.train import processes
from cmunet_jax.train.metrics_file import NAME, JsonLinesWriter, read_metrics
from cmunet_jax.train.pictures import PictureWriter
from cmunet_jax.train.sink import Sink
from cmunet_jax.train.tensorboard import TensorBoardWriter

__all__ = ["ConsoleWriter", "RunWriter", "create_writer", "read_metrics"]


class ConsoleWriter(Sink):
    """Prints one line a `write_scalars` call, above the progress line if there is one."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stdout

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Prints 'step 100  train/loss 0.1234  ...', four significant digits."""
        values = "  ".join(f"{name} {np.asarray(v).item():.4g}" for name, v in scalars.items())
        clear = "\r\x1b[K" if self._stream.isatty() else ""
        print(f"{clear}step {step:,}  {values}", file=self._stream, flush=True)


class RunWriter(metric_writers.MultiWriter):
    """Several writers as one, to be used in a `with` statement or closed."""

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def create_writer(workdir: str | Path, *, console: bool = True, start_step: int = 0) -> RunWriter:
    """Makes the writer of a run; in a run of several processes only the first one writes.

    Args:
      workdir: gets metrics.jsonl, tensorboard/ and pictures/.
      console: also print scalars.
      start_step: steps done by the state the run starts from. What an interrupted run wrote for
        later steps is dropped, so that a resumed run reports each step once.

    Returns:
      A clu MetricWriter for scalars, images, texts, histograms and hyper-parameters.

    Raises:
      UserError: if the workdir cannot be written.
    """
    if not processes.is_first():
        return RunWriter([])
    workdir = Path(workdir)
    writers: list[metric_writers.MetricWriter] = [
        JsonLinesWriter(workdir / NAME, start_step=start_step),
        TensorBoardWriter(workdir / "tensorboard", start_step=start_step),
        PictureWriter(workdir / "pictures"),
    ]
    return RunWriter(writers + ([ConsoleWriter()] if console else []))
