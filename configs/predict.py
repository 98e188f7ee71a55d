"""Segments angiograms of yours: images, arrays and DICOM runs, in any number and of any size.

    python -m cmunet_jax.main --config configs/predict.py --config.input=scans/,run.dcm
    python -m cmunet_jax.main --config configs/predict.py --config.checkpoint=runs/a,runs/b \
        --config.input='study/**/*.png' --config.tta=flips --workdir runs/study

Takes files, folders (with all below them) and globs, with commas between: PNG, JPEG, TIFF, BMP,
NPY ([H, W] or a run [T, H, W]) and DICOM. Writes masks, probabilities, pictures, DICOM SEG for
DICOM and predictions.json into runs/predictions; docs/clinical.md explains them, and `config.fit`.
Seconds to start, then some frames a second on two cores with size=small. The exit status is 0 if
every input was used, 3 if some could not be (they are named, and listed in predictions.json), 2 if
none could or the command is wrong, 1 if only the DICOM SEG of a DICOM could not be written.
"""

import ml_collections

from configs import common


def get_config(arg=None):
    """Returns the config of a prediction."""
    common.parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.stage = "predict"
    config.input = ""  # PATH[,PATH]: files, folders, globs
    config.checkpoint = "runs/finetune"  # workdir of a fine-tuning; several, by commas: an ensemble
    config.step = "latest"  # latest, best or a number
    config.weights = "ema"  # averaged weights where the run kept them, or raw
    config.batch_size = 8
    config.workers = 0  # threads that read and write; 0: as many as there are cores
    config.overwrite = False  # whether results in the workdir may be replaced
    # How a frame meets the network's square: whole, tiles (overlapping windows), or auto.
    config.fit = "auto"
    config.tile = 0  # side of a window in pixels of the frame; 0: what the checkpoint was shown
    config.tta = "none"  # averaged over: none, flips (4), rotations (4), all (8 of both)
    config.threshold = 0.5  # artery above this probability
    config.min_length = "0 px"  # components with a shorter centreline are removed: px or mm
    config.keep_components = 0  # the largest N components stay; 0: all
    config.frames = "all"  # of a run: all, or best (the one that shows most artery)
    config.spacing = 0.0  # mm per pixel, in place of what the files say; 0: what they say
    config.probability = "png"  # 16-bit, or npz: exact
    config.segmentation = True  # a DICOM SEG for each DICOM; False: none
    config.qca = False  # quantitative coronary analysis of each mask
    # Where the file says that annotations are burned into its pixels: withhold pictures, or keep.
    config.burned_in = "withhold"
    return config
