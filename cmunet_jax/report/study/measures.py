"""What is measured in a study: numbers with intervals, cells, comparisons.

Absent numbers are NaN, never None. Fractions are in [0, 1], times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cmunet_jax.report.results import PRIMARY, Floats

# Order of rows and columns everywhere; a method that is not named here follows, by name.
METHODS: Mapping[str, str] = {
    "scratch": "Scratch",
    "mae": "MAE",
    "genesis": "Model Genesis",
    "moco": "MoCo v2",
    "spark": "SparK",
    "cmunet": "CM-UNet",
}
REFERENCE = "scratch"


def method_name(method: str) -> str:
    """'CM-UNet' for 'cmunet'; an unknown method is its own name."""
    return METHODS.get(method, method)


def fewest_first(labels: int) -> float:
    """Sorts label counts in rising order, all (0) last."""
    return labels or math.inf


@dataclass(frozen=True)
class Number:
    """A number with its 95 % interval and where it comes from.

    Attributes:
      key: of `Study.provenance`, unique in the study, e.g. 'fair/cmunet/18/dice'.
      value: the estimate; NaN where it does not exist.
      low: lower end of its interval; NaN where there is none.
      high: upper end.
    """

    key: str
    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class MetricInfo:
    """A metric in words.

    Attributes:
      name: column of cases.csv, e.g. 'hd95'.
      heading: of a column, e.g. 'HD95'.
      text: in full.
      unit: '' for ratios, 'px', 'nat'.
      higher_is_better: direction.
    """

    name: str
    heading: str
    text: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Run:
    """One fine-tuning run of a cell.

    Attributes:
      key: of the trial.
      name: of the trial.
      draw: of the labelled subset.
      seed: of the run.
      learning_rate: used; NaN where unknown.
      steps: optimiser steps.
      seconds: of the training.
      means: metric -> mean over images.
      digest: of the checkpoint, or ''.
      directory: of its evaluation.
    """

    key: str
    name: str
    draw: int
    seed: int
    learning_rate: float
    steps: int
    seconds: float
    means: Mapping[str, float]
    digest: str
    directory: Path


@dataclass(frozen=True)
class PerImage:
    """The primary metric of each image, averaged over the runs of a cell.

    Attributes:
      ids: [n] image ids, the same order in every cell of a sweep.
      patients: [n], '' where unknown.
      values: [n] float64.
    """

    ids: tuple[str, ...]
    patients: tuple[str, ...]
    values: Floats


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: pixels whose predicted probability lies in [low, high).

    Attributes:
      low: lower end.
      high: upper end.
      count: pixels, over all runs.
      mean_probability: predicted, mean over those pixels; NaN where there are none.
      fraction_positive: of them that are artery; NaN where there are none.
    """

    low: float
    high: float
    count: float
    mean_probability: float
    fraction_positive: float


@dataclass(frozen=True)
class Calibration:
    """How far predicted probabilities can be believed.

    Attributes:
      ece: expected calibration error, mean over runs of the pooled value.
      brier: Brier score, likewise.
      bins: the bins of all runs, weighted by their counts.
    """

    ece: Number
    brier: Number
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Overlay:
    """A picture of one case.

    Attributes:
      method: whose prediction.
      labels: labelled images it was trained on.
      draw: of the run.
      seed: of the run.
      rank: 'best', 'median' or 'worst' of that run.
      id: image.
      dice: of that run on it.
      path: PNG.
    """

    method: str
    labels: int
    draw: int
    seed: int
    rank: str
    id: str
    dice: float
    path: Path


@dataclass(frozen=True)
class Cell:
    """One method at one label count under one protocol: a point of a label-efficiency curve.

    Attributes:
      sweep: label of its sweep.
      method: its name in the configs.
      labels: labelled images; 0 stands for all.
      variant: '' for the method itself.
      metrics: mean over runs and images, with the interval of `Study.notes`.
      pooled: metric -> all pixels of the split as one, mean over runs; NaN where undefined.
      spread: metric -> standard deviation of the runs' means; NaN with one run.
      calibre: 'thin', 'mid', 'thick' -> sensitivity; empty where it was not measured.
      calibration: or None where it was not measured.
      per_image: for scatter plots.
      runs: by draw and seed.
      pretrained: how many different pre-training runs the runs start from; 0 for scratch.
      n_images: measured in each run.
      n_patients: or 0 where patients are unknown.
      overlays: of its runs, as far as they were drawn.
    """

    sweep: str
    method: str
    labels: int
    variant: str
    metrics: Mapping[str, Number]
    pooled: Mapping[str, float]
    spread: Mapping[str, float]
    calibre: Mapping[str, Number]
    calibration: Calibration | None
    per_image: PerImage
    runs: tuple[Run, ...]
    pretrained: int
    n_images: int
    n_patients: int
    overlays: tuple[Overlay, ...] = ()

    @property
    def primary(self) -> Number:
        """Mean Dice."""
        return self.metrics[PRIMARY]


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison: interval, two tests, and the same after Holm's correction.

    Attributes:
      difference: ours − reference, mean over images and runs.
      p_images: Wilcoxon signed-rank over images (averaged over runs), two-sided.
      p_images_holm: the same, corrected over the family.
      p_patients: over patients (averaged over their images and runs); NaN where unknown.
      p_patients_holm: corrected.
      wins: images where ours is better.
      losses: images where it is worse.
      n_images: compared.
      n_patients: 0 where unknown.
      n_runs: pairs of runs.
      family: how many comparisons were corrected together.
      verdict: 'better', 'worse' or 'unclear', by the rule in `Study.notes`.
    """

    difference: Number
    p_images: float
    p_images_holm: float
    p_patients: float
    p_patients_holm: float
    wins: int
    losses: int
    n_images: int
    n_patients: int
    n_runs: int
    family: int
    verdict: str


@dataclass(frozen=True)
class Difference:
    """A method against scratch at the same label count of the same sweep.

    Attributes:
      sweep: label of the sweep.
      method: what is judged.
      reference: 'scratch'.
      labels: of both.
      metric: name.
      test: the comparison.
    """

    sweep: str
    method: str
    reference: str
    labels: int
    metric: str
    test: PairedTest


@dataclass(frozen=True)
class Drop:
    """The relative loss of Dice from the most labels to the fewest: 1 − Dice(fewest)/Dice(most).

    Attributes:
      sweep: label of the sweep.
      method: its name.
      most: larger label count.
      least: smaller label count.
      drop: fraction; ratio bootstrap, patients and runs resampled in both alike.
      saved: drop of scratch − this drop, positive where the method loses less; NaN for scratch.
      n_runs: that have both label counts; of `saved`, the fewer where scratch has fewer.
    """

    sweep: str
    method: str
    most: int
    least: int
    drop: Number
    saved: Number
    n_runs: int


@dataclass(frozen=True)
class Variant:
    """One thing changed in a method, everything else equal.

    Attributes:
      sweep: label of the sweep.
      name: of the variant.
      method: that it changes.
      labels: of both.
      changed: 'key: a -> b' of each config entry that differs.
      base: mean Dice of the method unchanged, over the runs that were compared.
      varied: mean Dice of the variant, over the same.
      test: variant − base; 'better' means that the variant is.
    """

    sweep: str
    name: str
    method: str
    labels: int
    changed: tuple[str, ...]
    base: Number
    varied: Number
    test: PairedTest


@dataclass(frozen=True)
class Failure:
    """An image on which the methods did badly.

    Attributes:
      sweep: label of the sweep.
      labels: label count.
      id: image.
      patient: or ''.
      mean: Dice over all methods and runs.
      dice: method -> Dice, mean over its runs.
      overlays: pictures of it, as far as they were drawn.
    """

    sweep: str
    labels: int
    id: str
    patient: str
    mean: Number
    dice: Mapping[str, float]
    overlays: tuple[Overlay, ...]
