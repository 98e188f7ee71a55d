"""The interface of the package: build or open a data set; write a new one on AngioBuilder.

    dataset = build("angio_synthetic/tiny", data_dir="data")
    dataset = open_dataset("arcade", data_dir="data")
    dataset.source("train+unlabelled")[0]["image"]     # uint8 [H, W, 1]

A new data set subclasses AngioBuilder and returns a Plan (see arcade/builder.py), and gets a line
in registry.py.
"""

from tfds_angio.builder import (
    SPLITS,
    AngioBuilder,
    Example,
    Option,
    Plan,
    Request,
    image_feature,
)
from tfds_angio.dataset import AngioDataset, Source
from tfds_angio.errors import UserError
from tfds_angio.parallel import default_workers, parallel_map
from tfds_angio.prepare import build, open_dataset

__all__ = [
    "SPLITS",
    "AngioBuilder",
    "AngioDataset",
    "Example",
    "Option",
    "Plan",
    "Request",
    "Source",
    "UserError",
    "build",
    "default_workers",
    "image_feature",
    "open_dataset",
    "parallel_map",
]
