"""Which tables a study has: the same in CSV, in LaTeX and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cmunet_jax.report import latex
from cmunet_jax.report.results import PRIMARY
from cmunet_jax.report.sections import digits
from cmunet_jax.report.study import CALIBRES, Cell, Number, Study, Sweep, method_name
from cmunet_jax.report.tables import Entry, Table

_NONE = Entry(math.nan)


def _plain(*values: str | int | float) -> tuple[Entry, ...]:
    return tuple(Entry(value) for value in values)


def tables_of(study: Study) -> list[Table]:
    """All tables, in the order of the page; empty ones are left out."""
    found: list[Table] = []
    for sweep in study.sweeps:
        found += [_dice(study, sweep), *_metrics(study, sweep), _differences(study, sweep)]
        found += [_calibre(study, sweep), _calibration(study, sweep)]
    found += [_drops(study), _variants(study), *_papers(study), _failures(study)]
    found += [_searches(study), _costs(study)]
    found += [_every_difference(study), _bins(study), _per_image(study), _runs(study)]
    found += [_reads(study), _problems(study), _sources(study)]
    return [table for table in found if table.rows]


def _cells(study: Study, sweep: Sweep) -> list[Cell]:
    return [cell for cell in study.cells if cell.sweep == sweep.label]


def _methods(study: Study, sweep: Sweep) -> list[str]:
    present = {cell.method for cell in _cells(study, sweep)}
    return [method for method in study.methods if method in present]


def _labels(labels: int) -> str:
    return f"{labels} labels" if labels else "all labels"


def _where(study: Study, sweep: Sweep) -> str:
    """'Title; 40 images of 12 patients, split test of angio_synthetic/small.'."""
    cells = _cells(study, sweep)
    images = f"{cells[0].n_images} images" if cells else ""
    if cells and cells[0].n_patients:
        images += f" of {cells[0].n_patients} patients"
    return f"{sweep.title}; {images}, split {sweep.split} of {sweep.data.get('name')}."


def _name(kind: str, sweep: Sweep) -> str:
    return latex.slug(f"{kind}-{sweep.label}")


# ------------------------------------------------------------------------------------ results


def _dice(study: Study, sweep: Sweep) -> Table:
    counts = study.labels(sweep.label)
    lost = {drop.method: drop for drop in study.drops if drop.sweep == sweep.label}
    rows = []
    for method in _methods(study, sweep):
        row = [Entry(method_name(method))]
        for labels in counts:
            cell = study.cell(sweep.label, method, labels)
            best = study.leaders.get((sweep.label, labels, PRIMARY)) == method
            row.append(Entry(cell.primary, is_best=best) if cell else _NONE)
        if lost:
            drop = lost.get(method)
            row.append(Entry(drop.drop, 1, percent=True) if drop else _NONE)
        rows.append(tuple(row))
    header = ["method", *map(_labels, counts), *(["relative drop"] if lost else [])]
    caption = f"Mean Dice with 95 % interval. {_where(study, sweep)} {study.notes['best']}"
    return Table(_name("dice", sweep), caption, tuple(header), tuple(rows))


def _metrics(study: Study, sweep: Sweep) -> Iterator[Table]:
    methods = _methods(study, sweep)
    for labels in study.labels(sweep.label):
        row_of = {c.method: c for c in _cells(study, sweep) if c.labels == labels}
        rows = []
        for name, info in study.metrics.items():
            numbers = [row_of[m].metrics.get(name) if m in row_of else None for m in methods]
            if not any(numbers):
                continue
            arrow = "higher is better" if info.higher_is_better else "lower is better"
            unit = f"{info.unit}, {arrow}" if info.unit else arrow
            best = study.leaders.get((sweep.label, labels, name))
            rows.append(
                (
                    Entry(info.heading),
                    Entry(unit),
                    *(
                        Entry(number, digits(info.unit), is_best=best == method)
                        if number
                        else _NONE
                        for method, number in zip(methods, numbers)
                    ),
                )
            )
        caption = (
            f"All metrics with {_labels(labels)}: mean over images and runs, 95 % interval. "
            f"{_where(study, sweep)} {study.notes['best']}"
        )
        header = ("metric", "unit", *map(method_name, methods))
        yield Table(_name(f"metrics-{labels}", sweep), caption, header, tuple(rows))


_TESTED = ("difference", "p images", "p images Holm", "p patients", "p patients Holm", "verdict")


def _differences(study: Study, sweep: Sweep) -> Table:
    rows = []
    for found in study.differences:
        if found.sweep == sweep.label and found.metric == PRIMARY:
            test = found.test
            rows.append(
                (
                    Entry(method_name(found.method)),
                    Entry(_labels(found.labels)),
                    Entry(test.difference, is_signed=True),
                    Entry(test.p_images, is_p=True),
                    Entry(test.p_images_holm, is_p=True),
                    Entry(test.p_patients, is_p=True),
                    Entry(test.p_patients_holm, is_p=True),
                    Entry(f"{test.wins} : {test.losses}"),
                    Entry(test.verdict),
                )
            )
    notes = " ".join(study.notes[topic] for topic in ("difference", "tests", "family", "verdict"))
    header = ("method", "labels", *_TESTED[:-1], "images better : worse", "verdict")
    caption = f"Dice minus that of scratch. {_where(study, sweep)} {notes}"
    return Table(_name("differences", sweep), caption, header, tuple(rows))


def _every_difference(study: Study) -> Table:
    rows = [
        (
            Entry(d.sweep),
            Entry(d.method),
            Entry(d.labels),
            Entry(d.metric),
            Entry(d.test.difference),
            Entry(d.test.p_images),
            Entry(d.test.p_images_holm),
            Entry(d.test.p_patients),
            Entry(d.test.p_patients_holm),
            Entry(d.test.wins),
            Entry(d.test.losses),
            Entry(d.test.n_images),
            Entry(d.test.n_patients),
            Entry(d.test.n_runs),
            Entry(d.test.family),
            Entry(d.test.verdict),
        )
        for d in study.differences
    ]
    more = ("images better", "images worse", "images", "patients", "runs", "family", "verdict")
    header = ("sweep", "method", "labels", "metric", *_TESTED[:-1], *more)
    return Table("every-difference", "All metrics.", header, tuple(rows), in_latex=False)


def _calibre(study: Study, sweep: Sweep) -> Table:
    rows = []
    for cell in _cells(study, sweep):
        if not cell.calibre:
            continue
        numbers = []
        for calibre in CALIBRES:
            best = study.leaders.get((sweep.label, cell.labels, f"sensitivity_{calibre}"))
            number = cell.calibre.get(calibre)
            numbers.append(Entry(number, is_best=best == cell.method) if number else _NONE)
        rows.append((Entry(method_name(cell.method)), Entry(_labels(cell.labels)), *numbers))
    caption = f"Sensitivity by vessel calibre. {study.notes['calibre']} {_where(study, sweep)}"
    header = ("method", "labels", *CALIBRES)
    return Table(_name("calibre", sweep), caption, header, tuple(rows))


def _calibration(study: Study, sweep: Sweep) -> Table:
    rows = [
        (
            Entry(method_name(cell.method)),
            Entry(_labels(cell.labels)),
            Entry(cell.calibration.ece, 4),
            Entry(cell.calibration.brier, 4),
        )
        for cell in _cells(study, sweep)
        if cell.calibration
    ]
    caption = f"Calibration. {study.notes['calibration']} {_where(study, sweep)}"
    header = ("method", "labels", "ECE", "Brier score")
    return Table(_name("calibration", sweep), caption, header, tuple(rows))


def _bins(study: Study) -> Table:
    rows = [
        _plain(c.sweep, c.method, c.labels, b.low, b.high, b.count,
                          b.mean_probability, b.fraction_positive)
        for c in study.cells
        if c.calibration
        for b in c.calibration.bins
    ]  # fmt: skip
    header = ("sweep", "method", "labels", "low", "high", "pixels", "mean probability",
              "fraction positive")  # fmt: skip
    return Table("calibration-bins", "Reliability bins.", header, tuple(rows), in_latex=False)


def _drops(study: Study) -> Table:
    rows = [
        (
            Entry(d.sweep),
            Entry(method_name(d.method)),
            Entry(_labels(d.most)),
            Entry(_labels(d.least)),
            Entry(d.drop, 1, percent=True),
            Entry(d.saved, 1, percent=True, is_signed=True)
            if math.isfinite(d.saved.value)
            else _NONE,
        )
        for d in study.drops
    ]
    header = ("sweep", "method", "from", "to", "relative drop of Dice", "drop of scratch minus it")
    return Table("drops", f"Relative drop of Dice. {study.notes['drop']}", header, tuple(rows))


def _variants(study: Study) -> Table:
    rows = [
        (
            Entry(v.sweep),
            Entry(method_name(v.method)),
            Entry(_labels(v.labels)),
            Entry(v.name),
            Entry(v.base),
            Entry(v.varied),
            Entry(v.test.difference, is_signed=True),
            Entry(v.test.p_images_holm, is_p=True),
            Entry(v.test.p_patients_holm, is_p=True),
            Entry(v.test.verdict),
        )
        for v in study.variants
    ]
    header = ("sweep", "method", "labels", "change", "unchanged", "changed", "difference",
              "p images Holm", "p patients Holm", "verdict")  # fmt: skip
    caption = f"One thing changed at a time, mean Dice. {study.notes['variants']}"
    return Table("variants", caption, header, tuple(rows))


def _papers(study: Study) -> Iterator[Table]:
    for paper in study.papers:
        methods = list(paper.drop.paper)
        rows = []
        for row in (*paper.rows, paper.drop):
            ours = _labels(row.labels) if row.labels else ""
            theirs = [Entry(row.paper[m], 1, percent=True) for m in methods]
            own: list[Number | None] = [row.ours.get(m) for m in methods]
            numbers = [Entry(n, 1, percent=True) if n else _NONE for n in own]
            rows.append((Entry(row.text), *theirs, Entry(ours), *numbers))
        header = ("paper", *map(method_name, methods), "this study",
                  *(f"{method_name(m)}, ours" for m in methods))  # fmt: skip
        caption = f"{paper.source}, left: {paper.note} Right: ours. {paper.warning}"
        caption = f"{caption} {paper.unmatched}".strip()
        yield Table(latex.slug(f"paper-{paper.sweep}"), caption, header, tuple(rows))


# ------------------------------------------------------------------------------- around them


def _failures(study: Study) -> Table:
    rows = [
        (
            Entry(f.sweep),
            Entry(_labels(f.labels)),
            Entry(f.id),
            Entry(f.patient),
            Entry(f.mean),
            *(Entry(f.dice.get(method, math.nan)) for method in study.methods),
        )
        for f in study.failures
    ]
    header = ("sweep", "labels", "image", "patient", "mean Dice", *map(method_name, study.methods))
    return Table("failures", study.notes["failures"], header, tuple(rows))


def _searches(study: Study) -> Table:
    rows = [
        (
            Entry(s.sweep),
            Entry(method_name(s.method)),
            Entry(_labels(s.labels)),
            Entry(s.variant),
            Entry(f"{s.learning_rate:g}"),
            Entry(s.trials),
            Entry(s.metric),
            Entry(s.value),
            Entry(s.spread),
            Entry("yes" if s.chosen else ""),
        )
        for s in study.searches
    ]
    header = ("sweep", "method", "labels", "variant", "learning rate", "trials", "judged by",
              "mean", "standard deviation", "chosen")  # fmt: skip
    return Table("learning-rates", study.notes["search"], header, tuple(rows))


def _costs(study: Study) -> Table:
    rows = [
        (
            Entry(c.sweep),
            Entry(c.kind),
            Entry(method_name(c.method)),
            Entry(c.variant),
            Entry(c.trials),
            Entry(c.steps),
            Entry(c.seconds / 3600, 2),
            Entry(c.energy_joules / 3.6e6, 3),
            Entry(c.devices),
        )
        for c in study.costs
    ]
    header = ("sweep", "kind", "method", "variant", "trials", "steps", "hours", "kWh", "hardware")
    return Table("cost", study.notes["cost"], header, tuple(rows))


def _per_image(study: Study) -> Table:
    rows = [
        _plain(c.sweep, c.method, c.labels, identity, patient, float(value))
        for c in study.cells
        for identity, patient, value in zip(
            c.per_image.ids, c.per_image.patients, c.per_image.values
        )
    ]
    header = ("sweep", "method", "labels", "image", "patient", "dice")
    return Table("per-image", "Dice, mean over runs.", header, tuple(rows), in_latex=False)


def _runs(study: Study) -> Table:
    rows = [
        (
            *_plain(c.sweep, c.method, c.labels, r.draw, r.seed, r.key, r.learning_rate,
                         r.steps, r.seconds, r.digest),
            *(Entry(r.means.get(name, math.nan)) for name in study.metrics),
        )
        for c in study.cells
        for r in c.runs
    ]  # fmt: skip
    header = ("sweep", "method", "labels", "draw", "seed", "trial", "learning rate", "steps",
              "seconds", "checkpoint", *study.metrics)  # fmt: skip
    return Table("runs", "Each run: means over images.", header, tuple(rows), in_latex=False)


def _reads(study: Study) -> Table:
    rows = [
        _plain(r.sweep, r.time, r.trial, r.name, r.split, r.purpose, r.digest,
               "yes" if r.matches else "no")
        for r in study.test_reads
    ]  # fmt: skip
    header = ("sweep", "time", "trial", "name", "split", "purpose", "checkpoint", "final one")
    return Table("test-reads", "Reads of the test split.", header, tuple(rows), in_latex=False)


def _problems(study: Study) -> Table:
    rows = [_plain(p.kind, p.where, p.text) for p in study.problems]
    return Table("problems", "Left out.", ("kind", "where", "text"), tuple(rows), in_latex=False)


def _sources(study: Study) -> Table:
    rows = [_plain(s.name, s.size, s.digest) for s in study.sources.values()]
    header = ("file", "bytes", "sha256")
    return Table("sources", "Files read.", header, tuple(sorted(rows, key=str)), in_latex=False)
