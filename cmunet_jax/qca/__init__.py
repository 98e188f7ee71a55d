"""Quantitative coronary analysis (QCA) of a mask: centrelines, diameters, stenoses."""

from cmunet_jax.qca.analysis import analyse
from cmunet_jax.qca.result import Analysis, Options, Segment

__all__ = ["Analysis", "Options", "Segment", "analyse"]
