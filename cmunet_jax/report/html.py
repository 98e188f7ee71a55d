"""Writes the report: reads the result files, arranges them, fills the templates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmunet_jax import config as config_lib
from cmunet_jax.report import findings, frame, sections
from cmunet_jax.report.comparison import ALPHA, Comparison, Result, compare, short_names
from cmunet_jax.report.results import (
    CASES,
    CONFIG,
    SCALARS,
    SUMMARY,
    Source,
    Training,
    describe,
    lookup,
    read_evaluation,
    read_training,
)
from tfds_angio.errors import UserError

# Facts that steer sentences; every other fact is printed as it is.
_STEERING = ("synthetic", "small_scale", "draws", "seeds", "scale", "remarks", "versions")
# What differs between any two runs without changing what is compared.
_NOT_COMPARED = ("data.dir", "data.source", "data.workers", "checkpoint.keep")


@dataclass(frozen=True)
class Arm:
    """One way of training that the report compares.

    Attributes:
      name: e.g. 'CM-UNet pre-training, 18 labels' or 'from scratch, 18 labels'.
      train_dir: workdir of the fine-tuning run (config.json, metrics.jsonl).
      evaluation_dir: folder of its evaluation (summary.json, cases.csv, overlays).
    """

    name: str
    train_dir: Path
    evaluation_dir: Path


@dataclass(frozen=True)
class Run:
    """What the page says about one run."""

    name: str
    training: Training
    rows: list[tuple[str, str]]
    config: str


def write(
    path: Path | str,
    *,
    title: str,
    pretrain: Path | None,
    arms: Sequence[Arm],
    facts: Mapping[str, Any],
) -> Path:
    """Writes one self-contained HTML page from result files.

    Args:
      path: of the page; replaced as a whole or not at all.
      title: heading of the page.
      pretrain: workdir of the pre-training, if there was one.
      arms: what to compare, at least one; the others are compared with the last one.
      facts: what no result file holds. Known keys: 'synthetic' (bool, else judged by the name of
        the data set), 'scale' (a phrase) and 'small_scale' (bool, else judged by width and image
        size), 'draws' and 'seeds' (how many of each an arm stands for, else 1), 'remarks' (list of
        sentences), 'versions'. Others are listed under what was run.

    Returns:
      The path.

    Raises:
      UserError: naming the result file that is missing, half-written or does not belong to the
        others, or why the page cannot be written.
    """
    path = Path(path)
    return frame.write(path, render(path, title=title, pretrain=pretrain, arms=arms, facts=facts))


def render(
    path: Path,
    *,
    title: str,
    pretrain: Path | None,
    arms: Sequence[Arm],
    facts: Mapping[str, Any],
) -> str:
    """Returns the page as text; arguments and errors as in `write`."""
    if not arms:
        raise UserError("a report needs at least one arm: name a trained and evaluated run.")
    first = read_training(Path(pretrain)) if pretrain else None
    results = _results(arms)
    comparisons = [compare(arm, results[-1]) for arm in results[:-1]]
    context = {
        "title": title,
        "facts": [(k.replace("_", " "), _text(v)) for k, v in facts.items() if k not in _STEERING],
        "alpha": ALPHA,
        "results": results,
        "pretrain": first,
        "comparisons": comparisons,
        "evaluation": results[0].evaluation,
        **_summary(results, comparisons, first, facts),
        **_findings_in_full(results, comparisons, first),
        "runs": list(_runs(results, first)),
        "differences": list(_differences(results)),
        "versions": _versions(results, first, facts),
        "sources": _sources(results, first),
    }
    return frame.render("report.html", path, context)


def _results(arms: Sequence[Arm]) -> list[Result]:
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise UserError("two arms of the report have one name: give each its own.")
    return [
        Result(
            arm.name,
            short,
            index,
            read_training(Path(arm.train_dir)),
            read_evaluation(Path(arm.evaluation_dir)),
        )
        for index, (arm, short) in enumerate(zip(arms, short_names(names)))
    ]


def _summary(
    results: Sequence[Result],
    comparisons: Sequence[Comparison],
    pretrain: Training | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "verdicts": [
            (findings.verdict(found), sections.interval_drawing(found)) for found in comparisons
        ],
        "caveats": findings.caveats(results, comparisons, pretrain, facts),
        "not_shown": findings.not_shown(results, facts),
        "synthetic": findings.is_synthetic(results, facts),
    }


def _findings_in_full(
    results: Sequence[Result], comparisons: Sequence[Comparison], pretrain: Training | None
) -> dict[str, Any]:
    key = sections.key_metrics(results)
    return {
        "key_columns": [sections.column(results[0].evaluation.metrics[name]) for name in key],
        "key_rows": [
            [sections.value(result.evaluation.metrics[name]) for name in key] for result in results
        ],
        "metric_rows": sections.metric_rows(results, comparisons),
        "case_rows": sections.case_rows(results, comparisons),
        "paired": [(found, sections.paired_drawings(found)) for found in comparisons],
        "overlays": sections.overlay_groups(results),
        "finetuning": sections.finetuning_curves(results),
        "pretraining": sections.pretraining_curves(pretrain) if pretrain else [],
        "plates": sections.pretraining_plates(pretrain) if pretrain else [],
    }


# ------------------------------------------------------------------------------- what was run


def _runs(results: Sequence[Result], pretrain: Training | None) -> Iterator[Run]:
    if pretrain:
        yield _run("Pre-training", pretrain, [])
    for result in results:
        found = result.evaluation
        extra = [
            ("Weights evaluated", " ".join(filter(None, [
                str(found.fact("checkpoint", "weights") or ""),
                f"at step {found.fact('checkpoint', 'step')}",
            ]))),
            ("Checkpoint SHA-256", str(found.fact("checkpoint", "digest") or "not recorded")),
            ("Evaluated on", f"{found.fact('dataset', 'name')}, split {found.fact('split')}"),
            ("Evaluated images", str(found.summary["n"])),
            ("Evaluation data fingerprint", str(found.fact("dataset", "fingerprint"))),
        ]  # fmt: skip
        yield _run(result.name, result.training, extra)


def _run(name: str, training: Training, extra: list[tuple[str, str]]) -> Run:
    record, config = training.record, training.config
    pairs = [
        ("Objective", _joined(lookup(config, "objective", "name"),
                              lookup(config, "objective", "preset"))),
        ("U-Net width", lookup(config, "model", "width")),
        ("Preprocessing", _joined(lookup(config, "preprocessing", "name"),
                                  lookup(config, "preprocessing", "size"))),
        ("Optimiser steps logged", f"{training.steps:,}"),
        ("Batch size", config.get("batch_size")),
        ("Labelled images", config.get("labels")),
        ("Draw of labelled images", config.get("draw")),
        ("Seed", config.get("seed")),
        ("Training data", _joined(findings.data_name(training), lookup(config, "data", "split"))),
        ("Training data fingerprint", lookup(record, "data", "fingerprint")),
        ("Started from", lookup(record, "init_from", "digest") or "fresh weights"),
        ("Hardware", lookup(record, "versions", "devices")),
    ]  # fmt: skip
    rows = [(label, str(value)) for label, value in pairs if value not in (None, "")]
    text = json.dumps(config, indent=1, sort_keys=True)
    return Run(name, training, rows + extra, text)


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part not in (None, ""))


def _differences(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """Yields (config key, value under each arm) where the fine-tuning configs differ."""
    flat = [dict(config_lib.flatten(result.training.config)) for result in results]
    for key in sorted(set().union(*flat)):
        values = [_text(values.get(key, "(absent)")) for values in flat]
        if len(set(values)) > 1 and key not in _NOT_COMPARED:
            yield key, values


def _versions(
    results: Sequence[Result], pretrain: Training | None, facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """(package, version) over all runs; several versions of one package are all named."""
    found: dict[str, dict[str, None]] = {}
    records: list[Any] = [pretrain.record] if pretrain else []
    records += [record for r in results for record in (r.training.record, r.evaluation.summary)]
    for record in [*records, facts]:
        for name, version in (lookup(record, "versions") or {}).items():
            found.setdefault(name, {})[str(version)] = None
    return [(name, "; ".join(values)) for name, values in sorted(found.items())]


def _sources(results: Sequence[Result], pretrain: Training | None) -> list[Source]:
    """Every file that the page took something from."""
    files: list[Path] = []
    for training in [pretrain, *(result.training for result in results)]:
        if training:
            files += [training.directory / CONFIG, training.directory / SCALARS]
    files += list(pretrain.pictures.values()) if pretrain else []
    for result in results:
        folder = result.evaluation.directory
        files += [folder / SUMMARY, folder / CASES]
        files += [picture for _, _, picture in result.evaluation.overlays()]
    return [describe(file) for file in files]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
