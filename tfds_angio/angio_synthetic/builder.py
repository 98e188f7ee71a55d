"""The TFDS builder: how many patients of which size go into which split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_angio import base
from tfds_angio.angio_synthetic.generator import render_patient


@dataclass(kw_only=True)
class SyntheticConfig(tfds.core.BuilderConfig):
    """One size of the data set.

    Attributes:
        size: side of the images in pixels.
        views: projections of each patient.
        patients: number of patients in each split.
    """

    size: int = 128
    views: int = 4
    patients: dict[str, int] | None = None


def _config(name: str, size: int, description: str, **patients: int) -> SyntheticConfig:
    return SyntheticConfig(
        name=name,
        version=AngioSynthetic.VERSION,
        description=description,
        size=size,
        patients=patients,
    )


@dataclass(frozen=True)
class Task:
    """One patient to render."""

    seed: int
    patient: int
    size: int
    views: int
    labelled: bool


def generate(task: Task) -> Sequence[base.Example]:
    """All frames of one patient as examples; without masks where the task is not labelled."""
    frames = render_patient(task.seed, task.patient, size=task.size, views=task.views)
    return [
        base.Example(
            id=frame.id,
            image=frame.image,
            mask=frame.mask if task.labelled else None,
            patient=frame.patient,
            centre=frame.centre,
            extra={
                "side": frame.side,
                "primary_deg": np.float32(round(frame.primary_deg, 1)),
                "secondary_deg": np.float32(round(frame.secondary_deg, 1)),
            },
        )
        for frame in frames
    ]


class AngioSynthetic(  # type: ignore[call-arg]
    base.AngioBuilder, skip_registration=True
):
    """Procedural coronary angiograms (see README.md beside this file)."""

    name = "angio_synthetic"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = (
        "Procedural coronary angiograms: 3-D trees of left and right coronary arteries in several "
        "C-arm projections, with Beer-Lambert attenuation, chest anatomy, catheter, collimator, "
        "quantum noise and the looks of six imaginary centres. The mask is the visible artery."
    )
    OPTIONS = {"seed": base.Option(0, "another seed gives other patients")}

    @classmethod
    def extra_features(cls) -> dict[str, Any]:
        """Coronary side and C-arm angles (LAO and cranial positive)."""
        return {
            "side": tfds.features.Text(),
            "primary_deg": tfds.features.Scalar(dtype=np.float32),
            "secondary_deg": tfds.features.Scalar(dtype=np.float32),
        }

    def plan(self, request: base.Request) -> base.Plan:
        """Consecutive patients go to train, val, test and unlabelled, so none is in two splits."""
        if request.source is not None:
            raise base.UserError(
                f"angio_synthetic is generated and takes no --source, but got {request.source}"
            )
        if request.options["seed"] < 0:
            raise base.UserError(
                f"option seed={request.options['seed']} is negative; give 0 or more"
            )
        config = self.builder_config
        tasks: dict[str, list[Task]] = {}
        first = 0
        for split in base.SPLITS:
            count = config.patients[split]
            tasks[split] = [
                Task(request.options["seed"], p, config.size, config.views, split != "unlabelled")
                for p in range(first, first + count)
            ]
            first += count
        return base.Plan(tasks=tasks, generate=generate)


AngioSynthetic.BUILDER_CONFIGS = [
    _config("tiny", 128, "64 images, for tests", train=6, val=3, test=3, unlabelled=4),
    _config("demo", 128, "244 images, for `make demo`", train=15, val=6, test=10, unlabelled=30),
    _config("small", 256, "300 images", train=23, val=9, test=15, unlabelled=28),
    # The proportions of FAME2 in the paper: 20 % test, about 500 labelled for training.
    _config("paper", 512, "1,800 images", train=125, val=45, test=90, unlabelled=190),
]
