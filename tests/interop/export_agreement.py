"""How near the exported program is to the chain on the host, on real angiograms.

    python -m tests.interop.export_agreement RUN IMAGES... [--preprocessing paper] [--bits 12]

RUN is a fine-tuned run. Another preprocessing than the run's own says nothing about vessels, but it
says what the two make of the same frames. With --bits 12 8-bit images become 12-bit ones, with
noise in the low bits. One line at the end for each kind of frame.
"""

import argparse
import pathlib
import tempfile

import cv2
import jax
import numpy as np

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import geometry, preprocessing, released
from cmunet_jax.interop import export_loader, export_preprocessing, export_stablehlo
from cmunet_jax.stages import export, segment
from cmunet_jax.train import sharding

fill = jax.jit(export_preprocessing._inpaint_corners)


def dark_corners(chain, frame):
    """Whether `paper` fills something, and how many pixels the program fills otherwise."""
    if chain.name != "paper":
        return False, 0
    crop = geometry.extract(released.to_uint8(frame), chain.geometry(*frame.shape), fill=None)
    ours = released.inpaint_corners(crop)
    theirs = fill(crop.astype(np.float32), np.ones(crop.shape, bool), np.int32(len(crop)))
    return bool((ours != crop).any()), (ours != theirs).sum()


def rows(run, files, name, bits):
    """Yields dark corners, Dice, largest and mean difference of probability, pixels that differ."""
    segmenter = segment.restore(run, step="latest", weights="ema", mesh=sharding.create_mesh())
    chain = segmenter.preprocessing
    if name not in ("", chain.name):
        chain = preprocessing.create({"name": name, "size": chain.size})
    network = objectives.create(config_lib.from_dict(segmenter.loaded.config)).network
    params, batch_stats = segmenter.loaded.weights()
    weights = {"params": params, "batch_stats": batch_stats}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.stablehlo")
        exported = export_stablehlo.export(network, weights, chain.to_dict())
        export_stablehlo.write(exported, path)
        function = export_loader.load(path)
    rng = np.random.default_rng(0)
    for file in files:
        frame = cv2.imread(file, cv2.IMREAD_ANYDEPTH)[None]  # grey, 8 or 16 bit
        if bits == 12:
            low = rng.integers(0, 16, frame.shape, dtype=np.uint16)
            frame = frame.astype(np.uint16) * 16 + low
        ours = export.probabilities(segmenter.forward, segmenter.weights, chain, frame)
        theirs = function(frame)
        a, b, apart = ours > 0.5, theirs > 0.5, np.abs(ours - theirs)
        dice = (2 * (a & b).sum() + 1) / (a.sum() + b.sum() + 1)
        dark, otherwise = dark_corners(chain, frame[0])
        yield dark, dice, apart.max(), apart.mean(), otherwise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--preprocessing", default="")
    parser.add_argument("--bits", type=int, choices=(8, 12), default=8)
    given = parser.parse_args()
    found = list(rows(given.run, given.images, given.preprocessing, given.bits))
    for dark in (False, True):
        some = np.array([row[1:] for row in found if row[0] == dark])
        if len(some):
            print(
                f"{'dark corners' if dark else 'no dark corners'}: {len(some)} frames, Dice at "
                f"least {some[:, 0].min():.5f}, mean {some[:, 0].mean():.5f}; probabilities apart "
                f"by at most {some[:, 1].max():.2g}, mean {some[:, 2].mean():.2g}"
                + f"; {some[:, 3].sum():.0f} pixels filled otherwise"
                * dark
            )


if __name__ == "__main__":
    main()
