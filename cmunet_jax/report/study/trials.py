"""A sweep directory as it was read: its finished trials and what it says of itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmunet_jax.report.results import Evaluation, lookup
from cmunet_jax.report.study.measures import METHODS, fewest_first

SWEEP, PLAN, READS = "sweep.json", "plan.json", "test_reads.jsonl"
TRIAL, RESULT = "trial.json", "result.json"
AGAIN = "run the sweep again; it does only what is missing"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
      key: of the plan.
      name: of the plan.
      kind: 'pretrain', 'search' or 'finetune'.
      method: its name.
      labels: labelled images, 0 for all or none.
      draw: of the labelled images.
      seed: of the run.
      variant: '' or the name of what was changed.
      fold: of the cross-validation, or −1.
      depends: keys of the trials that it starts from.
      folder: of the trial.
      config: resolved; empty where trial.json cannot be read.
      learning_rate: that it used; NaN where unknown.
      chosen_from: keys of the searches that chose the learning rate.
      result: content of result.json.
      files: names of the JSON files read.
      evaluation: its final evaluation, for fine-tuning.
    """

    key: str
    name: str
    kind: str
    method: str
    labels: int
    draw: int
    seed: int
    variant: str
    fold: int
    depends: tuple[str, ...]
    folder: Path
    config: Mapping[str, Any]
    learning_rate: float
    chosen_from: tuple[str, ...]
    result: Mapping[str, Any]
    files: tuple[str, ...]
    evaluation: Evaluation | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        """Place among the trials, whatever the order of the plan."""
        known = list(METHODS)
        place = known.index(self.method) if self.method in known else len(known)
        count = fewest_first(self.labels)
        return place, self.method, count, self.variant, self.draw, self.seed, self.key

    def number(self, *keys: str) -> float:
        """A number of the result; NaN where it has none."""
        value = lookup(self.result, *keys)
        return float(value) if isinstance(value, int | float) else math.nan


@dataclasses.dataclass(frozen=True)
class SweepFiles:
    """What one sweep directory holds.

    Attributes:
      label: its name in the study.
      directory: where.
      record: content of sweep.json.
      planned: trials of the plan.
      failed: of these, those that failed.
      trials: those that may be believed, in `Trial.order`.
      files: names of sweep.json and plan.json.
      reads: lines of the log of test reads.
    """

    label: str
    directory: Path
    record: Mapping[str, Any]
    planned: int
    failed: int
    trials: tuple[Trial, ...]
    files: tuple[str, ...]
    reads: tuple[Mapping[str, Any], ...]

    def of_kind(self, kind: str) -> list[Trial]:
        """Its trials of one kind."""
        return [trial for trial in self.trials if trial.kind == kind]
