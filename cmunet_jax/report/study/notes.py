"""How the statistics of a study were made, for its readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmunet_jax.evaluation.calibre import CALIBRES
from cmunet_jax.report.comparison import ALPHA


def notes(resamples: int, clusters_note: str, calibre: Mapping[str, Any]) -> dict[str, str]:
    """How the statistics were made, by topic.

    Args:
      resamples: bootstrap replicates.
      clusters_note: what was resampled, of the first sweep.
      calibre: of a summary.json: bounds and rule, or {}.
    """
    bounds = "; ".join(f"{name} {calibre[name]}" for name in CALIBRES if name in calibre)
    rule = " ".join(filter(None, [f"{bounds}." if bounds else "", str(calibre.get("rule") or "")]))
    return {
        "interval": (
            f"95 % percentile intervals from {resamples:,} bootstrap replicates (seed 0). Each "
            "replicate draws patients with replacement, with all their images, and, crossed with "
            "them, perturbs the weights of the draws of labelled images, so that the mean varies "
            "as Student's t with (draws − 1) degrees of freedom: few draws make wide intervals. "
            f"Seeds are averaged within a draw. {clusters_note} With one run only patients vary."
        ),
        "difference": (
            "Differences are paired: method minus scratch with the same draw, seed and image, "
            "then averaged over images and runs; same bootstrap, on the differences."
        ),
        "tests": (
            "Wilcoxon's signed-rank test, two-sided, zeros dropped: over images (each averaged "
            "over the runs), and over patients (averaged over their images too), which does not "
            "take images of one patient for independent."
        ),
        "family": (
            "P values are corrected by Holm's method over all methods and label counts of one "
            "sweep, for each metric by itself and for the two tests separately. Dice is the "
            "primary metric; the others are secondary and not corrected for their number."
        ),
        "verdict": (
            "Called better or worse only where the 95 % interval leaves zero and the Holm-"
            f"corrected Wilcoxon p over patients (over images where patients are unknown) is "
            f"below {ALPHA}; else unclear, which is not the same as equal."
        ),
        "best": (
            "Bold: better than every other method at that label count by paired 95 % "
            "bootstrap intervals that leave zero (not corrected for several comparisons)."
        ),
        "drop": (
            "Relative drop: 1 − mean Dice at the fewest labels / mean Dice at the most, over runs "
            "that have both; interval by resampling both means with the same patients and runs."
        ),
        "variants": (
            "Each variant changes one thing and is paired with the same method unchanged, by draw, "
            "seed and image; Holm's correction is over all variants of the sweep."
        ),
        "search": (
            "Learning rates are scored on the split named beside them, never on test images, "
            "unless the protocol says otherwise; the best mean is taken."
        ),
        "calibration": (
            "Reliability bins hold the pixels of all images and runs, weighted by their count; "
            "ECE and Brier score are means over runs of the values pooled over pixels."
        ),
        "calibre": f"Share of the true artery pixels found, by local calibre. {rule}".strip(),
        "failures": "The images with the lowest Dice, averaged over all methods and runs.",
        "cost": "Times are sums over finished trials as their runners logged them.",
    }
