"""The memory of a fine-tuning step, from the compiled program, which is not run.

    python -m tests.benchmark.step_memory BATCH SIDE float32|bfloat16

Compiles the step of `configs/finetune.py` (augmentation, forward, backward, AdamW, averaged
weights; one pass) on images that are in memory, once for each kind of rematerialisation, for the
devices that are there. Half a minute each; no such images and no such memory are needed.
"""

import sys

import jax
import jax.numpy as jnp

from cmunet_jax import objectives
from cmunet_jax.models.unet import REMAT
from cmunet_jax.train import estimate, optim, sharding
from cmunet_jax.train import state as state_lib
from cmunet_jax.train import step as step_lib
from configs.finetune import get_config


def measure(batch, side, dtype, remat, *, size="paper", accumulation=1):
    """Returns bytes of (state, temporaries) of one step with `batch` images of `side`²."""
    config = get_config(f"init=scratch,size={size}")
    config.batch_size, config.preprocessing.size = batch, side
    config.model.dtype, config.model.remat, config.accumulation = dtype, remat, accumulation
    objective, mesh = objectives.create(config), sharding.create_mesh()
    rate = optim.schedule(config.optim, batch_size=batch, total_steps=100, warmup_steps=1)
    tx = optim.create(config.optim, rate, total_steps=100)

    def start(key):
        variables = objective.init(key, (side, side, 1))
        return state_lib.create(variables, tx, ema=config.ema_decay > 0)

    state = jax.eval_shape(start, jax.random.key(0))
    of_one = jax.ShapeDtypeStruct((batch,), jnp.float32)
    pixels = jax.ShapeDtypeStruct((batch, side, side), jnp.uint8)
    images = {"code": pixels, "scale": of_one, "offset": of_one, "mask": pixels}
    step = step_lib.TrainStep(objective, tx, step_lib.spec_of(config, size=batch), mesh)
    compiled = step.jitted.lower(state, step.zero_metrics(state, images), images).compile()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return held, estimate.step_bytes(compiled)


def main(batch, side, dtype):
    """Prints a line for each kind of rematerialisation."""
    for remat in REMAT:
        held, temporary = measure(int(batch), int(side), dtype, remat)
        print(
            f"{remat}: state {held / 1e9:.2f} GB, temporary {temporary / 1e9:.2f} GB, "
            f"together {(held + temporary) / 1e9:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
