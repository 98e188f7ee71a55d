"""Random keys that are a function of (seed, stream, step, example), and of nothing else."""

import zlib

import jax

Array = jax.Array


def stream_key(seed: int | Array, stream: str) -> Array:
    """The key of one named stream of randomness, so that streams never share draws.

    threefry is asked for by name: a user's default generator must not change a run, and host and
    devices must agree.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    # 31 bits, as the traced fold_in takes an int32
    return jax.random.fold_in(key, zlib.crc32(stream.encode()) & 0x7FFFFFFF)


def example_keys(seed: int | Array, stream: str, step: int | Array, index: Array) -> Array:
    """One key an example: keys [B] for index int [B], the examples' places in their set."""
    key = jax.random.fold_in(stream_key(seed, stream), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
