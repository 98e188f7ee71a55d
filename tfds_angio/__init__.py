"""Angiography data sets for TFDS, built and read without TensorFlow."""
