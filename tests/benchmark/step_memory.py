"""The memory of a fine-tuning step, from the compiled program, which is not run.

    python -m tests.benchmark.step_memory BATCH SIDE float32|bfloat16 [--topology v5e:2x2]

Compiles the step of `configs/finetune.py` (augmentation, forward, backward, AdamW, averaged
weights; one pass) on images that are in memory, once for each kind of rematerialisation, for the
devices that are there or for one of a kind that is not (`tests.benchmark.ahead`). Half a minute
each, for a TPU two; no such images and no such memory are needed.
"""

import argparse

import jax
import jax.numpy as jnp

from cmunet_jax import objectives
from cmunet_jax.models.unet import REMAT
from cmunet_jax.train import estimate, optim, sharding
from cmunet_jax.train import state as state_lib
from cmunet_jax.train import step as step_lib
from configs.finetune import get_config
from tests.benchmark import ahead


def compiled_step(config, mesh=None):
    """Compiles the step of a training config on a batch that is in memory; (state's shapes, it)."""
    batch, side = config.batch_size, config.preprocessing.size
    objective, mesh = objectives.create(config), mesh or sharding.create_mesh()
    rate = optim.schedule(config.optim, batch_size=batch, total_steps=100, warmup_steps=1)
    tx = optim.create(config.optim, rate, total_steps=100)

    def start(key):
        variables = objective.init(key, (config.views.get("crop", side),) * 2 + (1,))
        return state_lib.create(variables, tx, ema=config.ema_decay > 0)

    state = jax.eval_shape(start, jax.random.key(0))
    place = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)  # noqa: E731
    state = jax.tree.map(place, state, sharding.Layout(mesh, config.sharding).of(state))
    of_one = jax.ShapeDtypeStruct((batch,), jnp.float32)
    pixels = jax.ShapeDtypeStruct((batch, side, side), jnp.uint8)
    images = {"code": pixels, "scale": of_one, "offset": of_one}
    if config.stage == "finetune":
        images["mask"] = pixels
    step = step_lib.TrainStep(objective, tx, step_lib.spec_of(config, size=batch), mesh)
    return state, step.jitted.lower(
        state, jax.eval_shape(step.zero_metrics, state, images), images
    ).compile()


def measure(batch, side, dtype, remat, *, size="paper", accumulation=1, mesh=None):
    """Returns (bytes of the state, the compiled step) for `batch` images of `side`²."""
    config = get_config(f"init=scratch,size={size}")
    config.batch_size, config.preprocessing.size = batch, side
    config.model.dtype, config.model.remat, config.accumulation = dtype, remat, accumulation
    state, compiled = compiled_step(config, mesh)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return held, compiled


def _side(text):
    side = int(text)
    if side < 32 or side % 16:
        raise argparse.ArgumentTypeError(f"{side} is not a multiple of 16, at least 32")
    return side


def main():
    """Prints a line for each kind of rematerialisation."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m tests.benchmark.step_memory"
    )
    parser.add_argument("batch", type=int)
    parser.add_argument("side", type=_side)
    parser.add_argument("dtype", choices=objectives.DTYPES)
    ahead.add_arguments(parser)
    options = parser.parse_args()
    mesh = ahead.create_mesh(options.topology, options.target)
    for remat in REMAT:
        held, compiled = measure(options.batch, options.side, options.dtype, remat, mesh=mesh)
        temporary, cost = estimate.step_bytes(compiled), ahead.cost(compiled.as_text())
        print(
            f"{remat}: state {held / 1e9:.2f} GB, temporary {temporary / 1e9:.2f} GB, "
            f"together {(held + temporary) / 1e9:.2f} GB{'; ' if cost else ''}{cost}",
            flush=True,
        )


if __name__ == "__main__":
    main()
