"""A model card (Mitchell et al. 2019) and the CLAIM items that result files can answer.

CLAIM: Checklist for Artificial Intelligence in Medical Imaging, 2024 update (Tejani et al.,
Radiology: Artificial Intelligence 6(4), e240300). The items are paraphrased; what only people know
is marked for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmunet_jax import __version__
from cmunet_jax.report import frame
from cmunet_jax.report.findings import plain
from cmunet_jax.report.results import lookup
from cmunet_jax.report.study import Study, Sweep, method_name, partitions
from cmunet_jax.report.study.wording import labels_text

AUTHOR = "author to complete"
CARD, CLAIM = "model_card.md", "claim.md"


def write(study: Study, directory: Path) -> list[Path]:
    """Writes model_card.md and claim.md; returns their paths.

    Raises:
      UserError: if the folder cannot be written.
    """
    card = "".join(f"## {heading}\n\n{text}\n\n" for heading, text in model_card(study))
    rows = "".join(
        f"| {number} | {_cell(item)} | {_cell(answer) if answer else f'*{AUTHOR}*'} |\n"
        for number, item, answer in claim(study)
    )
    head = (
        "# CLAIM 2024 checklist\n\nItems paraphrased from the 2024 update of the Checklist for "
        "Artificial Intelligence in Medical Imaging; check them against the published one before "
        f"submission. {AUTHOR.capitalize()}: what no result file holds.\n\n"
        "| item | what to report | answer |\n|---|---|---|\n"
    )
    return [
        frame.write(directory / CARD, f"# Model card: {study.title}\n\n{card.rstrip()}\n"),
        frame.write(directory / CLAIM, head + rows),
    ]


def _cell(text: str) -> str:
    """Text inside a Markdown table: one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


# --------------------------------------------------------------------------------- model card


def model_card(study: Study) -> list[tuple[str, str]]:
    """(heading, Markdown text) of each part."""
    methods = ", ".join(map(method_name, study.methods))
    devices = "; ".join(study.reproduction.hardware) or "not recorded"
    return [
        (
            "Model",
            f"Segmentation U-Nets for coronary arteries in X-ray angiograms, trained on few "
            f"labelled images, from scratch or after self-supervised pre-training ({methods}). "
            f"Input: one grey-scale frame; output: a probability of artery for each pixel. "
            f"cmunet-jax {__version__}; method: arXiv 2507.17779.",
        ),
        (
            "Intended use",
            "Research on label-efficient segmentation. Not a medical device; not tested for "
            "diagnosis, measurement or treatment of patients, on video, or on other modalities.",
        ),
        ("Training", _list([line for s in study.sweeps for line in _training(study, s)])),
        ("Evaluation data", _list([_data(study, sweep) for sweep in study.sweeps])),
        ("Results", _list(list(_results(study)))),
        (
            "What was found",
            "\n\n".join(f"**{f.question}** {f.short} {f.answer}" for f in study.findings)
            or "Nothing could be compared.",
        ),
        ("Limits", _list(study.caveats) or "None were recognised by the software."),
        (
            "Groups",
            "No result by sex, age, centre or scanner: the result files hold none of these. "
            "Results by vessel calibre are in the tables.",
        ),
        ("Left out", _list([f"{p.where}: {p.text}" for p in study.problems]) or "Nothing."),
        (
            "Cost",
            f"{study.reproduction.seconds / 3600:.2f} device hours in all on {devices}; "
            f"{_energy(study.reproduction.energy_joules)}.",
        ),
        (
            "To repeat it",
            f"Source: {study.reproduction.versions.get('source', 'not recorded')}.\n\n"
            + "\n".join(f"    {command}" for command in study.reproduction.commands),
        ),
    ]


def _training(study: Study, sweep: Sweep) -> Iterator[str]:
    cells = [cell for cell in study.cells if cell.sweep == sweep.label]
    if not cells:
        return
    counts = ", ".join(labels_text(n) for n in study.labels(sweep.label))
    runs = [run for cell in cells for run in cell.runs]
    steps = sorted({run.steps for run in runs})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    yield (
        f"{sweep.title}: protocol '{sweep.protocol}', {counts}; draws "
        f"{_values(run.draw for run in runs)}, seeds {_values(run.seed for run in runs)}; {span} "
        f"fine-tuning steps. {sweep.scale}"
    )


def _values(values: Any) -> str:
    return ", ".join(map(str, sorted(set(values))))


def _data(study: Study, sweep: Sweep) -> str:
    cells = [cell for cell in study.cells if cell.sweep == sweep.label]
    patients = cells[0].n_patients if cells else 0
    images = f"{cells[0].n_images} images" if cells else "no images"
    of = f" of {patients} patients" if patients else " (patients unknown)"
    chosen = partitions.selection_text(sweep)
    return (
        f"{sweep.title}: {images}{of}, split {sweep.split or 'unknown'} of "
        f"{sweep.data.get('name')}, fingerprint {sweep.data['fingerprint'][:12]}; "
        f"{'; '.join(filter(None, (partitions.overlap_text(sweep), chosen)))}."
    )


def _results(study: Study) -> Iterator[str]:
    for cell in study.cells:
        number = cell.primary
        band = ""
        if number.has_interval:
            band = f" (95 % interval {plain(number.low)} to {plain(number.high)})"
        yield (
            f"{cell.sweep}, {method_name(cell.method)}, {labels_text(cell.labels)}: mean Dice "
            f"{plain(number.value)}{band}"
        )


def _energy(joules: float) -> str:
    return f"{joules / 3.6e6:.3f} kWh" if math.isfinite(joules) else "energy not measured"


# -------------------------------------------------------------------------------------- CLAIM


_ITEMS: tuple[tuple[int, str], ...] = (
    (1, "Title: a study of AI methods, with the kind of technology"),
    (2, "Abstract: structured summary of design, methods, results and conclusions"),
    (3, "Background, intended use and role of the approach"),
    (4, "Aims, objectives and hypotheses"),
    (5, "Prospective or retrospective"),
    (6, "Goal of the study"),
    (7, "Data sources"),
    (8, "Inclusion and exclusion criteria"),
    (9, "Preprocessing of the data"),
    (10, "Selection of data subsets"),
    (11, "De-identification"),
    (12, "Handling of missing data"),
    (13, "Image acquisition protocol"),
    (14, "How the reference standard was obtained"),
    (15, "Why this reference standard"),
    (16, "Who annotated, with what qualification"),
    (17, "Annotation of the test set"),
    (18, "Inter- and intrarater variability"),
    (19, "How data were assigned to partitions"),
    (20, "Level at which partitions are disjoint"),
    (21, "Intended sample size"),
    (22, "Description of the model"),
    (23, "Software libraries, frameworks and packages"),
    (24, "Initialisation of the parameters"),
    (25, "Training: augmentation, hyper-parameters, number of models"),
    (26, "How the final model was selected"),
    (27, "Ensembling"),
    (28, "Performance metrics"),
    (29, "Statistical measures of significance and uncertainty"),
    (30, "Robustness or sensitivity analysis"),
    (31, "Explainability or interpretability"),
    (32, "Evaluation on internal data"),
    (33, "Testing on external data"),
    (34, "Registration of a clinical trial"),
    (35, "Numbers of patients or examinations included and excluded"),
    (36, "Demographic and clinical characteristics of each partition"),
    (37, "Performance and statistical uncertainty, with comparisons"),
    (38, "Estimates of diagnostic accuracy and their precision"),
    (39, "Analysis of failures"),
    (40, "Limitations"),
    (41, "Implications for practice"),
    (42, "Where the full protocol or further technical details are"),
    (43, "Availability of software, trained model and data"),
    (44, "Funding and the role of funders"),
)


def claim(study: Study) -> list[tuple[str, str, str]]:
    """(number, item, answer) of all 44 items; the answer is '' where only authors know it."""
    answers = _answers(study)
    return [(str(number), item, answers.get(number, "")) for number, item in _ITEMS]


def answered(study: Study) -> list[tuple[str, str, str]]:
    """The items of `claim` that have an answer."""
    return [row for row in claim(study) if row[2]]


def _answers(study: Study) -> dict[int, str]:
    """What the result files say."""
    configs = [sweep.config for sweep in study.sweeps]
    metrics = "; ".join(info.heading for info in study.metrics.values())
    versions = ", ".join(f"{n} {v}" for n, v in study.reproduction.versions.items())
    notes = study.notes
    found: dict[int, str] = {
        6: "Comparison of ways to pre-train a segmentation network at several label counts.",
        7: _joined(f"{s.data.get('name')} (fingerprint {s.data['fingerprint'][:12]})"
                   for s in study.sweeps),
        9: _setting(configs, "finetune", "preprocessing"),
        10: _joined(_subsets(study, sweep) for sweep in study.sweeps),
        12: "Trials and images that are missing were left out and listed: "
            f"{len(study.problems)} problems.",
        19: _joined(_partition(sweep) for sweep in study.sweeps),
        20: _joined(f"{s.title}: {level}" for s in study.sweeps
                    if (level := partitions.level_text(s))),
        22: _joined(filter(None, ("U-Net", _setting(configs, "finetune", "model")))),
        23: versions,
        24: "Random, or from the pre-training named in each table; the last 1×1 convolution anew.",
        25: _joined(_trained(study)),
        26: f"{notes['search']} {_selection(configs)} "
            + _joined(f"{s.title}: {chosen}" for s in study.sweeps
                      if (chosen := partitions.selection_text(s))),
        27: "None.",
        28: metrics,
        29: " ".join(notes[topic] for topic in ("interval", "difference", "tests", "family")),
        30: _joined(f"{method_name(v.method)}: {v.name}" for v in study.variants),
        32: _joined(_data(study, sweep) for sweep in study.sweeps),
        35: _joined(_data(study, sweep) for sweep in study.sweeps),
        37: _joined(f"{f.question} {f.short}" for f in study.findings),
        39: f"{notes['failures']} See the table of failures.",
        40: " ".join(study.caveats),
        42: "Configs, commands and digests are in the report; every number is traced to its files "
            "in tables/provenance.json.",
        43: f"Software: cmunet-jax {__version__}, Apache 2.0. Model and data: {AUTHOR}.",
    }  # fmt: skip
    return {number: " ".join(str(text).split()) for number, text in found.items() if text}


def _joined(parts: Any) -> str:
    return "; ".join(dict.fromkeys(parts))


def _setting(configs: Sequence[Mapping[str, Any]], *keys: str) -> str:
    """An entry of the sweeps' configs as text; '' where no config has it."""
    values = (lookup(config, *keys) for config in configs)
    texts = [_text(value) for value in values if value not in (None, {}, "")]
    return f"{keys[-1]}: {_joined(texts)}" if texts else ""


def _trained(study: Study) -> Iterator[str]:
    """Fine-tuning with the learning rates that it took, then each pre-training."""
    configs = [sweep.config for sweep in study.sweeps]
    yield from filter(None, _recipe(lookup(config, "finetune") for config in configs))
    for sweep in study.sweeps:
        rates: dict[str, set[float]] = {}
        for cell in study.cells:
            if cell.sweep == sweep.label:
                used = {r.learning_rate for r in cell.runs if math.isfinite(r.learning_rate)}
                rates.setdefault(cell.method, set()).update(used)
        each = [f"{method_name(m)} {', '.join(f'{r:g}' for r in sorted(found))}"
                for m, found in rates.items() if found]  # fmt: skip
        if each:
            yield f"learning rates taken ({sweep.title}): {'; '.join(each)}"
    for method in study.methods:
        stages = [(lookup(c, "pretrain", method), c.get("pretrain_for")) for c in configs]
        found = [{**s, **({"train_for": steps} if steps else {})}
                 for s, steps in stages if isinstance(s, Mapping)]  # fmt: skip
        if said := _joined(filter(None, _recipe(found, rate=True))):
            yield f"pre-training of {method_name(method)}: {said}"


def _recipe(stages: Iterable[Any], *, rate: bool = False) -> list[str]:
    """Length, batch, objective, optimiser and augmentation; its learning rate where it is final."""
    kept = [dict(stage) for stage in stages if isinstance(stage, Mapping)]
    for stage in kept:
        optim = stage.get("optim")
        if isinstance(optim, Mapping) and not rate:
            stage["optim"] = {k: v for k, v in optim.items() if k != "learning_rate"}
        stage["augmentation"] = stage.get("views")
    keys = ("train_for", "batch_size", "objective", "optim", "augmentation")
    return [_setting(kept, key) for key in keys]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)


def _subsets(study: Study, sweep: Sweep) -> str:
    counts = ", ".join(labels_text(n) for n in study.labels(sweep.label))
    runs = [run for cell in study.cells if cell.sweep == sweep.label for run in cell.runs]
    return (
        f"{sweep.title}: {counts}, nested draws {_values(run.draw for run in runs)} of the "
        "labelled images"
    )


def _partition(sweep: Sweep) -> str:
    splits = sweep.data.get("splits")
    sizes = _text(splits) if splits else "sizes not recorded"
    rule = lookup(sweep.config, "data", "splits")
    return f"{sweep.title}: {sizes}" + (f" ({rule})" if rule else "")


def _selection(configs: Sequence[Mapping[str, Any]]) -> str:
    steps = {str(lookup(config, "evaluate", "step")) for config in configs}
    weights = {str(lookup(config, "evaluate", "weights")) for config in configs}
    if steps == {"None"}:
        return ""
    return f"Checkpoint evaluated: {', '.join(sorted(steps))} ({', '.join(sorted(weights))})."
