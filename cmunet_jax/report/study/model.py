"""A study as plain values: the page, the tables and the cards are written from these.

Every number that was computed from result files is a `Number`, whose key leads to the files in
`Study.provenance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmunet_jax.report.results import PRIMARY
from cmunet_jax.report.study.measures import (
    Cell,
    Difference,
    Drop,
    Failure,
    MetricInfo,
    Number,
    Variant,
    fewest_first,
)


@dataclass(frozen=True)
class SourceFile:
    """A result file that was read.

    Attributes:
      name: '<label of the sweep>/<path below it>', the name in provenance.
      path: where it was.
      size: bytes.
      digest: SHA-256, hex.
    """

    name: str
    path: Path
    size: int
    digest: str


@dataclass(frozen=True)
class Problem:
    """Something that is missing or was left out; the rest of the study stands without it.

    Attributes:
      kind: 'failed' (the trial says so), 'missing' (planned, no result yet), 'dependency' (what it
        starts from is missing or failed), 'damaged' (a half-written file), 'data' (another data
        set or build), 'images' (evaluated on other images), 'test' (read more than once), or
        'pairing' (runs without a partner).
      where: name of the file or trial.
      text: one sentence: what, why, what to do.
    """

    kind: str
    where: str
    text: str


@dataclass(frozen=True)
class Overlap:
    """How much of the measured images training had seen.

    Attributes:
      images: of them, seen in training or pre-training.
      patients: that have images on both sides.
      note: why that was allowed, or ''.
    """

    images: int
    patients: int
    note: str


@dataclass(frozen=True)
class Sweep:
    """One sweep directory.

    Attributes:
      label: short and unique in the study: the name of its folder.
      directory: where.
      title: as given.
      protocol: 'fair', 'paper', …
      scale: one sentence.
      created: ISO time, or ''.
      data: name, fingerprint and splits of the data set.
      split: the split that the cells were measured on.
      config: of the sweep stage.
      versions: package -> version, with 'devices' and 'platform' where known.
      planned: trials of the plan.
      done: those with a result.
      failed: those that failed.
      seconds: spent by all trials that finished.
      energy_joules: the same; NaN where unknown.
      everything: labelled images that a label count of 0 (= all) stands for; 0 where unknown.
      selected_on: 'split/metric' that chose the checkpoints, '' for none; () where unrecorded.
      seen: what training had seen of the measured images; None where unrecorded.
      rule: by which the splits were made, or ''.
      deviations: sentences on where it is less than its protocol asks for.
    """

    label: str
    directory: Path
    title: str
    protocol: str
    scale: str
    created: str
    data: Mapping[str, Any]
    split: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    planned: int
    done: int
    failed: int
    seconds: float
    energy_joules: float
    everything: int = 0
    selected_on: tuple[str, ...] = ()
    seen: Overlap | None = None
    rule: str = ""
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """One learning rate that was tried for a method at a label count.

    Attributes:
      sweep: label of the sweep.
      method: its name.
      labels: label count.
      draw: of the labelled subset, or −1 where the search was shared.
      variant: '' or the variant it was made for.
      learning_rate: tried.
      trials: folds or runs that were averaged.
      value: mean of the selection metric.
      spread: its standard deviation over the trials; NaN with one.
      metric: what was judged by, e.g. 'fold/dice'.
      chosen: whether fine-tuning used it.
    """

    sweep: str
    method: str
    labels: int
    draw: int
    variant: str
    learning_rate: float
    trials: int
    value: Number
    spread: float
    metric: str
    chosen: bool


@dataclass(frozen=True)
class Cost:
    """What the trials of one kind and method took.

    Attributes:
      sweep: label of the sweep.
      method: its name.
      kind: 'pretrain', 'search' or 'finetune'.
      variant: '' or the variant.
      trials: finished ones.
      steps: optimiser steps of all of them.
      seconds: of all of them.
      energy_joules: of all of them; NaN where one is unknown.
      devices: e.g. '1 x cpu (cpu)'; several are joined by '; '.
      key: of the provenance.
    """

    sweep: str
    method: str
    kind: str
    variant: str
    trials: int
    steps: int
    seconds: float
    energy_joules: float
    devices: str
    key: str


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table beside ours; Dice as a fraction, drops as a fraction.

    Attributes:
      text: e.g. '1 % (18)'.
      labels: our label count it stands beside, all (0) as its true number; 0 where we have none.
      paper: method -> the paper's value.
      ours: method -> ours, where measured.
    """

    text: str
    labels: int
    paper: Mapping[str, float]
    ours: Mapping[str, Number]


@dataclass(frozen=True)
class PaperTable:
    """The paper's table beside one sweep of ours, which is measured on another data set.

    Attributes:
      sweep: label of our sweep.
      rows: from most to fewest labels.
      drop: relative drop from the most to the fewest labels.
      source: citation of the paper.
      note: what its numbers are.
      warning: why the two halves must not be compared as if they were one experiment.
      unmatched: a sentence where no label count of ours is near one of the paper's, else ''.
    """

    sweep: str
    rows: tuple[PaperRow, ...]
    drop: PaperRow
    source: str
    note: str
    warning: str
    unmatched: str


@dataclass(frozen=True)
class SplitRead:
    """One line of test_reads.jsonl.

    Attributes:
      sweep: label of the sweep.
      time: ISO, or ''.
      trial: key.
      name: of the trial.
      split: that was read.
      digest: of the checkpoint; '' where the log names none.
      matches: whether it is the checkpoint of the trial's result; False where none is named.
      purpose: why, as logged.
    """

    sweep: str
    time: str
    trial: str
    name: str
    split: str
    digest: str
    matches: bool
    purpose: str = ""


@dataclass(frozen=True)
class Reproduction:
    """What it takes to repeat the study.

    Attributes:
      commands: shell lines, in order.
      configs: file name -> JSON of the resolved config of each sweep.
      digests: (what, SHA-256 or fingerprint) of data, configs and checkpoints.
      versions: package -> versions, joined by '; ' where runs differ.
      hardware: devices and platforms that trials ran on.
      seconds: of all trials.
      energy_joules: of all trials; NaN where one is unknown.
    """

    commands: tuple[str, ...]
    configs: Mapping[str, str]
    digests: tuple[tuple[str, str], ...]
    versions: Mapping[str, str]
    hardware: tuple[str, ...]
    seconds: float
    energy_joules: float


@dataclass(frozen=True)
class Finding:
    """An answer in words that follows from numbers by a rule.

    Attributes:
      question: e.g. 'Does pre-training help at equal budget?'.
      short: the answer in one line.
      answer: sentences with the numbers.
      certainty: 'clear', 'unclear' or 'none' (the data do not answer it).
      numbers: keys of the provenance that it rests on.
    """

    question: str
    short: str
    answer: str
    certainty: str
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Everything the report of a study says.

    Attributes:
      title: heading.
      sweeps: in the order given.
      metrics: by name, in the order of the evaluations.
      methods: names, in the order of rows.
      cells: the methods themselves, by sweep, method and falling label count.
      differences: to scratch, every metric.
      leaders: (sweep, labels, metric) -> the method that is better than every other one: the
        interval of each paired difference leaves zero. Only where there is such a method.
      drops: of every method with at least two label counts.
      variants: one thing changed at a time.
      searches: learning rates.
      costs: by sweep, kind and method.
      failures: the worst images, worst first.
      papers: the paper's table beside each sweep.
      test_reads: in order of time.
      problems: what was left out.
      findings: answers in words.
      caveats: what limits them, one sentence each.
      notes: how the statistics were made, by topic: 'interval', 'difference', 'tests', 'family',
        'verdict', 'best', 'drop', 'variants', 'search', 'calibration', 'calibre', 'failures',
        'cost'.
      reproduction: what it takes to repeat it.
      provenance: key of a number -> names of the files that it was computed from.
      sources: every file that was read, by name.
    """

    title: str
    sweeps: tuple[Sweep, ...]
    metrics: Mapping[str, MetricInfo]
    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    leaders: Mapping[tuple[str, int, str], str]
    drops: tuple[Drop, ...]
    variants: tuple[Variant, ...]
    searches: tuple[Search, ...]
    costs: tuple[Cost, ...]
    failures: tuple[Failure, ...]
    papers: tuple[PaperTable, ...]
    test_reads: tuple[SplitRead, ...]
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]
    caveats: tuple[str, ...]
    notes: Mapping[str, str]
    reproduction: Reproduction
    provenance: Mapping[str, tuple[str, ...]] = field(repr=False)
    sources: Mapping[str, SourceFile] = field(repr=False)

    def cell(self, sweep: str, method: str, labels: int) -> Cell | None:
        """The cell of a method, or None where it was not measured."""
        for cell in self.cells:
            if (cell.sweep, cell.method, cell.labels) == (sweep, method, labels):
                return cell
        return None

    def labels(self, sweep: str) -> tuple[int, ...]:
        """Label counts of a sweep, ascending; 0, which stands for all, last."""
        found = {cell.labels for cell in self.cells if cell.sweep == sweep}
        return tuple(sorted(found, key=fewest_first))

    def everything(self, sweep: str) -> int:
        """Labelled images that 0 stands for in a sweep; 0 where unknown."""
        return next((entry.everything for entry in self.sweeps if entry.label == sweep), 0)

    def curve(self, sweep: str, method: str, metric: str = PRIMARY) -> list[tuple[int, Number]]:
        """(label count, number) of a method, by ascending label count; 0, all, last."""
        found = [
            (cell.labels, cell.metrics[metric])
            for cell in self.cells
            if (cell.sweep, cell.method) == (sweep, method) and metric in cell.metrics
        ]
        return sorted(found, key=lambda point: fewest_first(point[0]))
