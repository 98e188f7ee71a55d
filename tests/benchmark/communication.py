"""What a training step sends between devices: the tables of docs/performance.md.

    python -m tests.benchmark.communication [--topology v5e:2x4]

Compiles the steps of fine-tuning and of CM-UNet pre-training at the paper's size, 16 images a
device in pre-training and 2 in fine-tuning, for eight devices that are made of the CPU, in both
layouts, or for eight of a kind that is not there (`tests.benchmark.ahead`); nothing is run. A
minute on two cores, for eight GPUs three.
"""

import argparse
import importlib
import os

from tests.benchmark import ahead

DEVICES = 8
LINKS = {  # bytes a second that one device sends, seconds a hop
    "400 GB/s, 2 us": (400e9, 2e-6),
    "100 GB/s, 1 us": (100e9, 1e-6),
    "50 GB/s, 5 us": (50e9, 5e-6),
    "1.25 GB/s, 25 us": (1.25e9, 25e-6),
}


def main():
    """Prints counts and predictions, one block a step and layout."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.communication")
    parser.add_argument("--size", choices=("paper", "tiny"), default="paper")
    parser.add_argument("--accumulation", type=int, default=1, help="passes a step")
    ahead.add_arguments(parser)
    options = parser.parse_args()
    size = options.size
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    mesh = ahead.create_mesh(options.topology, options.target, DEVICES)
    import jax

    from cmunet_jax.train import communication
    from tests.benchmark.step_memory import compiled_step

    for stage, argument, batch in (
        ("finetune", "init=scratch", 2 * DEVICES),
        ("pretrain", "objective=cmunet", 16 * DEVICES),
    ):
        for layout in ("data", "fsdp"):
            config = importlib.import_module(f"configs.{stage}").get_config(
                f"size={size},{argument}"
            )
            config.batch_size, config.sharding = batch, layout
            config.accumulation = options.accumulation
            state, compiled = compiled_step(config, mesh)
            found = communication.of_step(compiled, devices=DEVICES)
            held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
            part = sum(
                jax.numpy.dtype(leaf.dtype).itemsize * _elements(leaf)
                for leaf in jax.tree.leaves(state)
            )
            print(f"{stage}, {layout}: state {held / 1e6:.0f} MB, a device {part / 1e6:.0f} MB")
            for kind, row in communication.totals(found).items():
                print(
                    f"  {kind}: {row['count']:.0f}, carry {row['bytes'] / 1e6:.3f} MB, "
                    f"each device sends {row['sent_bytes'] / 1e6:.3f} MB"
                )
            for link, (rate, hop) in LINKS.items():
                times = (
                    1e3
                    * communication.predict(
                        found, devices=n, bytes_per_second=rate, seconds_per_hop=hop
                    )
                    for n in (8, 64, 512)
                )
                print(f"  {link}: {' / '.join(f'{t:.1f}' for t in times)} ms", flush=True)


def _elements(leaf):
    """Of a leaf's part on one device."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    count = 1
    for n in shape:
        count *= n
    return count


if __name__ == "__main__":
    main()
