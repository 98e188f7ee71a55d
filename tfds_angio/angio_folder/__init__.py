"""The user's own angiograms: a folder of images, some with masks."""
