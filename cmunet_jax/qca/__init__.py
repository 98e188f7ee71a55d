"""Quantitative coronary analysis (QCA) of a mask: centrelines, diameters, stenoses."""

from cmunet_jax.qca.analysis import analyse
from cmunet_jax.qca.graph import MAX_SEGMENTS, TooManySegments
from cmunet_jax.qca.output import to_json, write_csv
from cmunet_jax.qca.picture import draw
from cmunet_jax.qca.result import Analysis, Options, Segment

__all__ = [
    "MAX_SEGMENTS",
    "Analysis",
    "Options",
    "Segment",
    "TooManySegments",
    "analyse",
    "draw",
    "to_json",
    "write_csv",
]
