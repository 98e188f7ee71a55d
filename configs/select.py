"""Chooses which images to label next: those that stand for the most others of a pool.

    python -m cmunet_jax.main --config configs/select.py --config.checkpoint=runs/pretrain
    python -m cmunet_jax.main --config configs/select.py:data=arcade \
        --config.checkpoint=runs/pretrain --config.k=40 --config.method=coverage
    python -m cmunet_jax.main --config configs/select.py --config.checkpoint=runs/pretrain \
        --config.input=/path/to/images --config.pattern='^(?P<patient>[^_]+)_'

The pool is a built data set (by default that of the checkpoint) or a folder of images and DICOMs;
the encoder that of any checkpoint, with its own preprocessing. Writes selection.csv (the list that
the viewer opens: --config.images), selection.json (provenance), contact_sheet.png, map.png and, of
a data set or of DICOMs, the chosen images. A minute for a thousand images on two cores with
size=small. Whether it beats a random draw: docs/select.md.
"""

import ml_collections

from configs import common


def get_config(arg=None):
    """Returns the config of a selection."""
    arg = common.parse_arg(arg, data="")
    config = ml_collections.ConfigDict()
    config.stage = "select"
    config.checkpoint = "runs/pretrain"
    config.step = "latest"  # latest, best or a number
    config.weights = "ema"  # averaged weights where the run kept them, or raw
    config.data = common.data(arg.data, "paper")
    config.data.dir = config.data.splits = ""  # like the name, those of the training
    config.split = "train+unlabelled"  # images of train have masks, and so count as labelled
    config.input = ""  # a folder of images and DICOM runs, instead of a data set
    # Whose an image of the folder is: a regular expression on its name, and a CSV before it.
    config.pattern = r"^(?P<centre>[^-_]+)-(?P<patient>[^_]+)_(?P<view>.+)$"
    config.manifest = ""
    config.k = 18  # images to choose
    config.method = "typiclust"  # or coverage, or random: the baseline
    config.features = "bottleneck"  # or all: the five maps of the encoder
    config.radius = "half"  # of coverage: half, purity, or a number (features have length 1)
    config.per_patient = 1  # most images of a patient (or run), labelled ones included; 0: no limit
    config.centres = "proportional"  # or equal, or any: how many of each centre
    config.labelled = ""  # file with ids that are labelled already: JSON, CSV or a line each
    config.masks = "labelled"  # what an image with a mask is; ignore: to choose among them too
    config.batch_size = 16
    config.overwrite = False
    config.seed = 0
    return config
