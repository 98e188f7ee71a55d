"""Label-efficient segmentation of coronary arteries in X-ray angiography, in JAX."""

__version__ = "0.1.0"
