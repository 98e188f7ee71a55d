"""Writes the page of a study: every number on it names the files that it was computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmunet_jax.report import blocks, charts, frame, images, prose
from cmunet_jax.report.charts import Look
from cmunet_jax.report.findings import plain
from cmunet_jax.report.sections import Plate
from cmunet_jax.report.study import Failure, Overlay, PaperTable, Study, method_name
from cmunet_jax.report.study_parts import Part, make_part
from tfds_angio.errors import UserError

_PICTURE = 760  # pixels: failure cases are many and small
_FAILURES, _PLATES = 3, 4  # images of each sweep and label count, pictures of each


def write_study(
    path: Path | str,
    study: Study,
    *,
    title: str = "",
    model_card: Sequence[tuple[str, str]] = (),
    claim: Sequence[tuple[str, str, str]] = (),
) -> Path:
    """Writes one self-contained HTML page of a study.

    Args:
      path: of the page; replaced as a whole or not at all.
      study: what it shows.
      title: heading of the page, else that of the study.
      model_card: (heading, Markdown text) of each part of the model card.
      claim: (number, item, answer) of each item of the CLAIM checklist that is answered.

    Returns:
      The path.

    Raises:
      UserError: if the page cannot be written.
    """
    path = Path(path)
    return frame.write(path, render(path, study, title, model_card, claim))


def render(
    path: Path,
    study: Study,
    title: str = "",
    model_card: Sequence[tuple[str, str]] = (),
    claim: Sequence[tuple[str, str, str]] = (),
) -> str:
    """Returns the page as text, in which a picture that cannot be read is named; see above."""
    looks = charts.looks(_methods(study))
    parts = [make_part(study, sweep, at, looks) for at, sweep in enumerate(study.sweeps)]
    context = {
        "title": title or study.title,
        "study": study,
        "looks": looks,
        "parts": parts,
        "sections": _sections(study, parts, bool(model_card), bool(claim)),
        "findings": [
            (finding, blocks.origins(study, finding.numbers)) for finding in study.findings
        ],
        "failures": _failures(study, looks),
        "papers": [_paper(study, table) for table in study.papers],
        "costs": [
            (cost, looks.get(cost.method), blocks.hint(study, cost.key)) for cost in study.costs
        ],
        "model_card": [(name, list(prose.passages(text))) for name, text in model_card],
        "claim": claim,
        "origins": lambda numbers: blocks.origins(study, [n.key for n in numbers]),
        "label_text": blocks.label_text,
        "duration": blocks.duration,
        "energy": blocks.energy,
        "method_name": method_name,
    }
    return frame.render("study.html", path, context)


def _sections(
    study: Study, parts: Sequence[Part], card: bool, claim: bool
) -> list[tuple[str, str, bool]]:
    """(id, name, whether the page has it) of the sections after the findings."""

    def any_has(*names: str) -> bool:
        return any(getattr(part, name) for part in parts for name in names)

    return [
        ("labels", "Label efficiency", any_has("curves", "drops")),
        ("differences", "Differences to scratch", any_has("forest")),
        ("metrics", "All metrics", any(part.metrics.rows for part in parts)),
        ("images", "Image by image", any_has("scatter")),
        ("failures", "Failure cases", bool(study.failures)),
        ("calibre", "Vessel calibre", any_has("calibre")),
        ("calibration", "Calibration", any_has("reliability")),
        ("changes", "One change at a time", any_has("changes")),
        ("rates", "Learning rates", bool(study.searches)),
        ("paper", "The paper's table", bool(study.papers)),
        ("problems", "Problems found", True),
        ("repeat", "How to repeat it", True),
        ("cost", "Time and energy", True),
        ("card", "Model card", card),
        ("claim", "CLAIM", claim),
        ("sources", "Sources", True),
    ]


def _methods(study: Study) -> list[str]:
    """The methods in the order of rows, with those that only a part of the study mentions."""
    mentioned = [*study.methods]
    for group in (study.cells, study.variants, study.searches, study.costs):
        mentioned += [entry.method for entry in group]
    mentioned += [m for table in study.papers for m in table.drop.paper]
    return list(dict.fromkeys(mentioned))


# ------------------------------------------------------------------------- parts of the whole


@dataclass(frozen=True)
class FailureGroup:
    """The failure cases of one sweep at one label count.

    Attributes:
      title: of the sweep.
      labels: label count.
      found: of the images, worst first.
      cases: what the page shows of each.
    """

    title: str
    labels: int
    found: list[Failure]
    cases: list[dict[str, Any]]


def _failures(study: Study, looks: Mapping[str, Look]) -> list[FailureGroup]:
    """The worst few images of every sweep and label count: each fails in its own way."""
    groups: dict[tuple[str, int], list[Failure]] = {}
    for failure in study.failures:
        groups.setdefault((failure.sweep, failure.labels), []).append(failure)
    titles = {sweep.label: sweep.title for sweep in study.sweeps}
    return [
        FailureGroup(
            titles.get(sweep) or sweep,
            labels,
            found[:_FAILURES],
            [_failure(study, failure, looks) for failure in found[:_FAILURES]],
        )
        for (sweep, labels), found in groups.items()
    ]


def _failure(study: Study, found: Failure, looks: Mapping[str, Look]) -> dict[str, Any]:
    plates, lost = [], []
    for overlay in _one_each(found.overlays):
        name = method_name(overlay.method)
        try:
            picture = images.embed(overlay.path, width=_PICTURE)
        except UserError:  # it was whole when the study was read
            lost.append(overlay.path)
            continue
        run = f"draw {overlay.draw}, seed {overlay.seed}"
        caption = f"{name}, {run}: Dice {plain(overlay.dice)}."
        alt = f"Image {overlay.id} with the truth and what {name} predicts on it."
        plates.append(Plate(picture, name, caption, alt))
    return {
        "found": found,
        "mean": blocks.shown(study, found.mean),
        "plates": plates,
        "lost": lost,
        "dice": [(looks[method], plain(value)) for method, value in found.dice.items()],
    }


def _one_each(overlays: Sequence[Overlay]) -> list[Overlay]:
    """The worst picture of each method, as many as a page can carry, in the order of methods."""
    worst: dict[str, Overlay] = {}
    for overlay in overlays:
        if overlay.method not in worst or overlay.dice < worst[overlay.method].dice:
            worst[overlay.method] = overlay
    kept = sorted(worst.values(), key=lambda overlay: overlay.dice)[:_PLATES]
    return [overlay for overlay in worst.values() if overlay in kept]


def _paper(study: Study, table: PaperTable) -> dict[str, Any]:
    """Both halves of the table, in percent as the paper gives them."""
    methods = [m for m in study.methods if any(m in row.paper for row in (*table.rows, table.drop))]
    rows = []
    for row in (*table.rows, table.drop):
        ours = [blocks.shown(study, row.ours.get(m), places=1, scale=100) for m in methods]
        rows.append((row, [plain(100 * row.paper.get(m, float("nan")), 1) for m in methods], ours))
    numbers = [number for row in (*table.rows, table.drop) for number in row.ours.values()]
    return {
        "table": table,
        "title": next((s.title for s in study.sweeps if s.label == table.sweep), table.sweep),
        "methods": methods,
        "rows": rows,
        "origins": blocks.origins(study, [number.key for number in numbers]),
    }
