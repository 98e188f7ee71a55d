"""Networks that need no training: they call dark what is below the mean artery."""

import numpy as np

from cmunet_jax.data import preprocessing
from cmunet_jax.predict.network import Frame, Network


def chain(name="fixed", size=32, **options):
    return preprocessing.create({"name": name, "size": size, **options})


class Dark:
    """float32 [B, S, S, 1] -> logits: the darker, the more artery. Remembers what it was given."""

    def __init__(self, gain=2.0):
        self.gain = gain
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images):
        self.shapes.append(images.shape)
        return np.stack([np.zeros(images.shape[:3]), -self.gain * images[..., 0]], -1)


def network(forward=None, **options):
    return Network(forward or Dark(), chain(**options))


def frames(images, owner=""):
    return (Frame(owner, index, image) for index, image in enumerate(images))
