"""Procedural coronary angiograms: the embedded default data set."""
