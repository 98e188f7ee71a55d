"""Runs a segmentation network over images and brings its output back to their size.

At any time only two batches are in memory. Threads read and prepare the next one while the device
computes; TFDS, OpenCV and SciPy leave the interpreter lock, and forking a process that runs JAX is
not safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.config import choose
from cmunet_jax.data.geometry import Geometry
from cmunet_jax.data.prepared import PreparedSplit
from cmunet_jax.data.preprocessing import Prepared, Preprocessing
from tfds_angio.base import AngioDataset, default_workers
from tfds_angio.errors import UserError

RESOLUTIONS = ("native", "network")

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


@dataclass(frozen=True)
class Reader:
    """Position in a split -> `Loaded`; safe to use from several threads.

    Attributes:
        dataset: an opened data set.
        split: its split, also 'a+b'.
        preprocessing: the one that the network was trained with.
        resolution: 'native' or 'network', the size at which truth and prediction meet.
        prepared: the split's images by id where they are kept (`data.prepared`), so that they
            need not be prepared again; those that it lacks are prepared when read.
    """

    dataset: AngioDataset
    split: str
    preprocessing: Preprocessing
    resolution: str = "native"
    prepared: PreparedSplit | None = None

    def __post_init__(self) -> None:
        choose("config.resolution", self.resolution, RESOLUTIONS)

    def positions(self, ids: Sequence[str] | None) -> list[int]:
        """Where the images are; all of the split where `ids` is None.

        Raises:
            UserError: no images, an unknown id or one that is listed twice.
        """
        name = f"{self.dataset.name} {self.split}"
        known = {identifier: at for at, identifier in enumerate(self.dataset.ids(self.split))}
        wanted = list(known) if ids is None else list(ids)
        if not wanted:
            raise UserError(f"{name}: no images to evaluate; choose another split")
        for identifier in wanted:
            if identifier not in known:
                raise UserError(f"{name}: the split holds no image {identifier!r}")
        if len(set(wanted)) != len(wanted):
            raise UserError(f"{name}: an image is listed twice among the ids")
        return [known[identifier] for identifier in wanted]

    @cached_property
    def _source(self) -> Any:
        return self.dataset.source(self.split)

    def __call__(self, position: int) -> Loaded:
        """Reads and prepares one image.

        Raises:
            UserError: the image has no mask.
        """
        example = self._source[position]
        if not example["has_mask"]:
            raise UserError(
                f"{self.dataset.name} {self.split}: image {example['id']} has no mask, so there is "
                "nothing to compare with: evaluate a labelled split (val or test)"
            )
        values, geometry = self._network_input(example)
        if self.resolution == "native":
            image, truth = example["image"][..., 0], example["mask"][..., 0]
        else:
            image = np.clip(128 + 51 * values, 0, 255).astype(np.uint8)  # ±2.5 standard deviations
            truth = self.preprocessing.apply_mask(example["mask"], geometry)
        return Loaded(self, example, values, geometry, np.asarray(image), np.asarray(truth) != 0)

    def _network_input(self, example: Mapping[str, Any]) -> tuple[NDArray[np.float32], Geometry]:
        """What the network sees, float32 [S, S], and where it lies in the image."""
        row = self._rows.get(example["id"])
        if row is None or self.prepared is None:
            made = self.preprocessing.apply(example["image"])
            return made.float(), made.geometry
        kept = self.prepared
        made = Prepared(kept.code[row], kept.scale[row], kept.offset[row], kept.geometries[row])
        return made.float(), made.geometry

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Where each image is among the prepared ones."""
        return {} if self.prepared is None else {i: at for at, i in enumerate(self.prepared.ids)}


@dataclass(frozen=True)
class Loaded:
    """One image on its way through the network.

    Attributes:
        reader: where it came from.
        example: as the data set gives it.
        network_input: float32 [S, S].
        geometry: of the preprocessing.
        image: as in `Prediction`.
        truth: as in `Prediction`.
    """

    reader: Reader
    example: Mapping[str, Any]
    network_input: NDArray[np.float32]
    geometry: Geometry
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]

    def finish(self, logits: NDArray[np.float32]) -> Prediction:
        """The prediction from the logits [S, S, 2].

        Raises:
            UserError: the logits are not finite.
        """
        if not np.isfinite(logits).all():
            raise UserError(
                f"the network gives NaN or infinity for image {self.example['id']}: "
                "its training has diverged, use an earlier checkpoint or a lower learning rate"
            )
        margin = logits[..., 1:] - logits[..., :1]
        if self.reader.resolution == "native":
            margin = self.reader.preprocessing.restore(margin, self.geometry, fill=float("nan"))
        return Prediction(
            id=self.example["id"],
            patient=self.example["patient"],
            centre=self.example["centre"],
            image=self.image,
            truth=self.truth,
            margin=margin[..., 0],
        )


def run(
    forward: Forward,
    variables: Any,
    reader: Reader,
    positions: Sequence[int],
    *,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Loaded, NDArray[np.float32]]]:
    """Yields (image, logits float32 [S, S, 2]) in the order of the positions.

    The last batch is padded with copies of its last image and the padding dropped, so that
    `forward` always sees [batch_size, S, S, 1] and is compiled once.
    """
    batches = [positions[at : at + batch_size] for at in range(0, len(positions), batch_size)]
    if not batches:
        return
    upcoming = [pool.submit(reader, position) for position in batches[0]]
    for following in [*batches[1:], []]:
        batch = [future.result() for future in upcoming]
        upcoming = [pool.submit(reader, position) for position in following]
        images = np.stack([loaded.network_input for loaded in batch])[..., None]
        padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
        logits = forward(variables, np.pad(images, padding, mode="edge"))
        yield from zip(batch, np.asarray(logits, np.float32))


def predict(
    forward: Forward,
    variables: Any,
    reader: Reader,
    *,
    ids: Sequence[str] | None = None,
    batch_size: int = 8,
    workers: int | None = None,
) -> Iterator[Prediction]:
    """Yields the prediction for each image, in the order of `ids` or of the split.

    Args and errors as in `evaluator.evaluate`.
    """
    positions = reader.positions(ids)
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        for loaded, logits in run(
            forward, variables, reader, positions, batch_size=batch_size, pool=pool
        ):
            yield loaded.finish(logits)
