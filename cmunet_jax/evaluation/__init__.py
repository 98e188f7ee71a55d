"""How good a segmentation is: metrics of one image, statistics over images, results on disk.

`metrics` measures one image, `paper` does so as the paper's released code did, `statistics` turns
rows into intervals, `evaluator` runs a network over a split, `results` and `overlays` write what
came out. Nothing is imported here, so that reading a metric does not start JAX.
"""
