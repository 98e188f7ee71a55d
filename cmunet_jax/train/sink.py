"""The base of this project's metric writers: a writer implements only what it can show."""

from collections.abc import Mapping
from typing import Any

from clu import metric_writers
from clu.metric_writers.interface import Array, Scalar


class Sink(metric_writers.MetricWriter):
    """clu's MetricWriter interface with every kind ignored; subclasses override some."""

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Ignored."""

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Ignored."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Ignored."""

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Array],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Ignored."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Ignored."""

    def write_summaries(
        self, step: int, values: Mapping[str, Array], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Ignored."""

    def write_videos(self, step: int, videos: Mapping[str, Array]) -> None:
        """Ignored."""

    def write_audios(self, step: int, audios: Mapping[str, Array], *, sample_rate: int) -> None:
        """Ignored."""

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is open."""
