"""Masks of users' angiograms: frames in, network, masks and pictures out.

`windows` says which parts of a frame a network sees, `network` runs networks over a stream of
frames in batches, `masks` makes masks of probabilities, `best` picks a frame of a run, `outputs`
and `record` write it all down, and `run` puts these together.
"""
