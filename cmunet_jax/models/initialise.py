"""Initial weights of whole networks from one draw of random numbers.

Flax draws each kernel apart. A network has dozens, and each draw of another shape costs XLA on CPU
over half a second to compile: 17 s for a U-Net, against 1 s for one draw that is cut into kernels.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any

# Standard deviation of a normal distribution that is cut off at two of its standard deviations.
_TRUNCATED_STD = 0.87962566103423978
_CONSTANT = {"bias": 0.0, "mean": 0.0, "scale": 1.0, "var": 1.0}
# Mask tokens: normal with deviation 0.02, cut off at one deviation (SparK, Tian et al., 2023).
token_normal = jax.nn.initializers.truncated_normal(0.02, lower=-1, upper=1)


def shapes_of(module: Any, *inputs: Any) -> Tree:
    """Shapes of a module's variables, for training-mode inputs given as arrays or shapes."""
    return jax.eval_shape(lambda k, *x: module.init(k, *x, train=True), jax.random.key(0), *inputs)


def draw(key: Array, shapes: Tree) -> Tree:
    """Draws variables: He-normal kernels (He et al., 2015), as `flax.linen.initializers.he_normal`.

    Args:
      key: of the one draw; mask tokens, where there are any, take a second one.
      shapes: pytree of dicts with leaves `kernel` [..., inputs, outputs], `token` [C], `bias`,
        `mean` (zero), `scale` and `var` (one).

    Returns:
      Arrays in place of the shapes.

    Raises:
      ValueError: for a leaf of another name.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = [path[-1].key for path, _ in leaves]
    unknown = sorted(set(names) - {"kernel", "token", *_CONSTANT})
    if unknown:
        raise ValueError(f"no rule to initialise variables named {', '.join(unknown)}")
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    total = {
        kind: sum(n for n, k in zip(sizes, names) if k == kind) for kind in ("kernel", "token")
    }
    normal = jax.random.truncated_normal(key, -2, 2, (total["kernel"],), jnp.float32)
    drawn = {"kernel": normal / _TRUNCATED_STD}
    if total["token"]:  # Compiling another draw for nothing takes as long as compiling the first.
        drawn["token"] = token_normal(jax.random.fold_in(key, 1), (total["token"],))
    values, start = [], {"kernel": 0, "token": 0}
    for (_, leaf), name, size in zip(leaves, names, sizes):
        if name in _CONSTANT:
            values.append(jnp.full(leaf.shape, _CONSTANT[name], leaf.dtype))
            continue
        value = drawn[name][start[name] : start[name] + size].reshape(leaf.shape)
        start[name] += size
        if name == "kernel":
            value = math.sqrt(2 / math.prod(leaf.shape[:-1])) * value
        values.append(value)
    return jax.tree.unflatten(treedef, values)
