"""What the configs of all stages share; a config file changes only what it is about.

Four sizes: `paper` (U-Net-64 at 256², the paper's), `small` (U-Net-16 at 128², about an hour on a
laptop), `demo` (U-Net-8 at 96², minutes), `tiny` (U-Net-4 at 64², seconds; for tests).
"""

import ml_collections

from cmunet_jax.config import parse_arg
from cmunet_jax.data import preprocessing, views

SIZES = ("paper", "small", "demo", "tiny")
PRESETS = ("fixed", "paper")
WIDTH = {"paper": 64, "small": 16, "demo": 8, "tiny": 4}
IMAGE_SIZE = {"paper": 256, "small": 128, "demo": 96, "tiny": 64}
EMBEDDED_DATA = "angio_synthetic"

Config = ml_collections.ConfigDict


def parse(arg: str | None, **more) -> Config:
    """Arguments of both training stages: size, preset, data (a TFDS name), preprocessing."""
    parsed = parse_arg(
        arg, size=SIZES, preset=PRESETS, data=EMBEDDED_DATA, preprocessing=("", *PRESETS), **more
    )
    parsed.preprocessing = parsed.preprocessing or parsed.preset
    return parsed


def data(name: str, size: str) -> Config:
    """Which data set, from where, and how it is fed."""
    return Config(
        {
            # TFDS name or name/config: angio_synthetic/<size>, arcade, angio_folder.
            "name": f"{name}/{size}" if name == EMBEDDED_DATA else name,
            "dir": "data",  # where built data sets are kept
            "source": "",  # arcade, angio_folder: the folder or archive to build from
            # How the images are divided: built (as the data set says), holdout:N (N images of
            # train, whole patients, become the split holdout) or paper (as released, by image).
            "splits": "built",
            "options": "",  # of the builder, as in tfds_angio.build: "key=value key=value"
            "streaming": False,  # True: through Grain instead of resident on the device
            "workers": 0,  # processes; 0: all cores to build and prepare, threads to stream
        }
    )


def model(size: str) -> Config:
    """The U-Net."""
    return Config(
        {
            "width": WIDTH[size],  # of the finest level; 64 is the paper's
            "dtype": "float32",  # of the computation: float32 or bfloat16; weights are float32
            "up": "transposed",  # or bilinear
            "fast": True,  # forms of layers that XLA compiles well; False: the textbook's, slower
            # Less memory for more time: norms computes normalisation and ReLU again for the
            # gradient, blocks the convolutions too.
            "remat": "none",
        }
    )


def optim(**changes) -> Config:
    """AdamW with linear warm-up and cosine decay."""
    config = Config(
        {
            "name": "adamw",  # adamw, adam, sgd, lamb
            "learning_rate": 1e-3,
            "reference_batch": 0,  # > 0: learning_rate is multiplied by batch_size / this
            "schedule": "cosine",  # cosine, constant, step
            "warmup": "5%",
            "warmup_from": 1e-4,  # of the peak
            "halve_every": 0.156,  # schedule=step: fraction of the run
            "b1": 0.9,
            "b2": 0.999,
            "momentum": 0.9,  # sgd
            "weight_decay": 0.0,  # of kernels only
            "weight_decay_end": -1.0,  # >= 0: cosine from weight_decay to this over the run
            "clip_norm": 0.0,  # 0: off
            # A step whose loss or gradient is not finite: stop, or skip it and count it.
            "on_nan": "stop",
        }
    )
    config.update(changes)
    return config


def training(arg: Config, *, view: str) -> Config:
    """What pre-training and fine-tuning share."""
    side = IMAGE_SIZE[arg.size]
    prepared = Config(preprocessing.create({"name": arg.preprocessing, "size": side}).to_dict())
    return Config(
        {
            "seed": 0,
            "data": data(arg.data, arg.size),
            "preprocessing": prepared,
            # Of the size of the prepared images, also when that is changed; their own if it is set.
            "views": views.default_options(
                view, prepared.get_oneway_ref("size"), preset=arg.preset
            ),
            "model": model(arg.size),
            "accumulation": 1,  # passes a step; the batch is cut into this many
            "sharding": "data",  # each device holds all weights and moments; fsdp: its part of them
            "distributed": "off",  # one process; auto: as the scheduler says; explicit: as `hosts`
            "hosts": Config(
                {
                    "coordinator": "",  # explicit: HOST:PORT of the first process
                    "processes": 0,  # explicit: how many there are
                    "process": 0,  # explicit: which this one is, from 0
                    "wait_seconds": 50,  # for the others, before giving up
                }
            ),
            "ema_decay": 0.0,  # of averaged weights; 0: none kept
            "log_every": "20 steps",
            "pictures_every": "20%",
            "checkpoint": Config({"every": "5%", "keep": 2, "best": ""}),
        }
    )
