"""Looks at a predict run in a browser of this machine, and corrects its masks.

    python -m cmunet_jax.main --config configs/view.py --config.input=runs/predictions
    python -m cmunet_jax.main --config configs/view.py --config.input=runs/predictions \
        --config.compare=runs/predictions_scratch --config.labels=runs/labels
    python -m cmunet_jax.main --config configs/view.py --config.images=runs/select/selection.csv

Prints an address and serves it, to this machine only, until Ctrl-C: it starts within seconds, needs
no accelerator and as much memory as a few frames. Painted masks are saved as labels/imgs/NAME.png
and labels/masks/NAME.png, which `--config.data.name=angio_folder` trains on. See docs/viewer.md.
"""

import ml_collections

from configs import common


def get_config(arg=None):
    """Returns the config of the viewer."""
    common.parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.stage = "view"
    config.input = ""  # workdir of a predict run; '': runs/predictions, unless there are images
    config.compare = ""  # workdir of a second one, of the same inputs, by another checkpoint
    config.images = ""  # instead: a folder of images and DICOMs, or a list (CSV with column path)
    config.labels = "runs/labels"  # where painted masks go
    config.overwrite = False  # True: replace a saved label without asking
    config.port = 0  # 0: any that is free
    config.open_browser = False  # True: start a browser at the address
    return config
