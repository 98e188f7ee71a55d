"""Arms of a report against its reference arm: may they be compared, and how do they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmunet_jax.evaluation import statistics
from cmunet_jax.evaluation.statistics import PairedDifference
from cmunet_jax.report.results import PRIMARY, Evaluation, Floats, Training
from tfds_angio.errors import UserError

# What two evaluations must share before their images may be paired.
_SHARED = (
    ("protocol",),
    ("resolution",),
    ("split",),
    ("dataset", "name"),
    ("dataset", "fingerprint"),
)


ALPHA = 0.05


@dataclass(frozen=True)
class Result:
    """One arm with what was read for it.

    Attributes:
      name: as given, e.g. 'from scratch, 18 labels'.
      short: without what all arms share, e.g. 'from scratch'.
      index: place among the arms; its colour and marker.
      training: its fine-tuning run.
      evaluation: its results.
    """

    name: str
    short: str
    index: int
    training: Training
    evaluation: Evaluation


@dataclass(frozen=True)
class Comparison:
    """An arm minus the reference arm, on the same images.

    Attributes:
      arm: what is judged.
      reference: what it is judged against.
      differences: metric name -> paired difference of the means, arm − reference.
      per_image: [n] float64, differences of the primary metric in the order of the arm's ids.
      reference_values: [n] float64, the reference's primary metric in that order.
      clusters: patients (or images) that were resampled.
    """

    arm: Result
    reference: Result
    differences: Mapping[str, PairedDifference]
    per_image: Floats
    reference_values: Floats
    clusters: int

    @property
    def primary(self) -> PairedDifference:
        """The difference in mean Dice."""
        return self.differences[PRIMARY]

    def verdict(self, metric: str = PRIMARY) -> str:
        """'better', 'worse' or 'unclear'.

        Not unclear only where the interval leaves zero and the permutation test agrees: over a
        few patients a bootstrap interval is too narrow to be believed by itself, while the test
        cannot give p < ALPHA with fewer than six.
        """
        difference = self.differences[metric]
        sign = 1 if self.arm.evaluation.metrics[metric].higher_is_better else -1
        ends = sorted((sign * difference.low, sign * difference.high))
        if not ends[0] > 0 and not ends[1] < 0 or difference.p_value >= ALPHA:
            return "unclear"
        return "better" if ends[0] > 0 else "worse"


def short_names(names: Sequence[str]) -> list[str]:
    """Drops the comma-separated endings that all names share ('…, 18 labels')."""
    parts = [name.split(", ") for name in names]
    while len(names) > 1 and all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return [", ".join(p) for p in parts]


def compare(arm: Result, reference: Result) -> Comparison:
    """Pairs two arms image by image.

    Raises:
      UserError: if they were evaluated on different data, or in different ways.
    """
    ours, theirs = arm.evaluation, reference.evaluation
    _check_comparable(ours, theirs)
    # A metric that is infinite somewhere (protocol `paper`) has no mean to compare.
    shared = [
        name
        for name, metric in ours.metrics.items()
        if metric.usable and name in theirs.metrics and theirs.metrics[name].usable
    ]
    rows, others = _rows(ours, shared), _rows(theirs, shared)
    place = {identity: index for index, identity in enumerate(theirs.ids)}
    order = [place[identity] for identity in ours.ids]
    reference_values = theirs.metrics[PRIMARY].values[order]
    return Comparison(
        arm=arm,
        reference=reference,
        differences={name: statistics.paired_difference(rows, others, name) for name in shared},
        per_image=ours.metrics[PRIMARY].values - reference_values,
        reference_values=reference_values,
        clusters=statistics.cluster(ours.patients).count,
    )


def _rows(evaluation: Evaluation, names: Sequence[str]) -> list[dict[str, object]]:
    return [
        {"id": identity, "patient": patient}
        | {name: evaluation.metrics[name].values[index] for name in names}
        for index, (identity, patient) in enumerate(zip(evaluation.ids, evaluation.patients))
    ]


def _check_comparable(ours: Evaluation, theirs: Evaluation) -> None:
    remedy = "Evaluate both checkpoints with the same data set, split and protocol."
    for keys in _SHARED:
        left, right = ours.fact(*keys), theirs.fact(*keys)
        if left != right:
            name = ".".join(keys)
            raise UserError(
                f"{_at(ours)} has {name}={left} but {_at(theirs)} has {name}={right}, so they "
                f"cannot be compared. {remedy}"
            )
    odd = sorted(set(ours.ids) ^ set(theirs.ids))
    if odd:
        raise UserError(
            f"{_at(ours)} and {_at(theirs)} were evaluated on different images ({len(odd)} are in "
            f"one only, e.g. '{odd[0]}'). {remedy}"
        )


def _at(evaluation: Evaluation) -> Path:
    return evaluation.directory / "summary.json"
