"""Where arrays live: one mesh with one axis, jit and NamedSharding; nothing else knows devices."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cmunet_jax.config import choose
from tfds_angio.errors import UserError

AXIS = "data"
LAYOUTS = ("data", "fsdp")
# A smaller leaf stays whole: a message has a cost of its own, and most leaves are a few channels.
SMALL_LEAF = 4096


def create_mesh() -> Mesh:
    """Returns the mesh of all devices, those of other processes too, on one axis named 'data'."""
    # Auto axes: under explicit ones the contrastive product of a batch with itself is refused.
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the resident data set, and of parameters under layout 'data'."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of arrays whose `axis` counts examples."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def constrain(tree: Any, sharding: NamedSharding) -> Any:
    """Applies a sharding to every leaf of a traced pytree."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a training state is spread over the devices.

    Attributes:
      mesh: of all devices.
      kind: 'data', every device holds all of it; 'fsdp', every device holds its part of each leaf,
        along the longest axis that the devices divide evenly (fully sharded data parallelism: Zhao
        et al., 2023; ZeRO stage 3: Rajbhandari et al., 2020). Leaves below `SMALL_LEAF` elements,
        and those that no axis divides, stay whole.
    """

    mesh: Mesh
    kind: str = "data"

    def __post_init__(self) -> None:
        """Refuses a kind that does not exist, naming the config's key."""
        choose("config.sharding", self.kind, LAYOUTS)

    def of(self, tree: Any) -> Any:
        """The shardings of a pytree of arrays (or of their shapes), one a leaf."""
        return jax.tree.map(lambda x: NamedSharding(self.mesh, self._spec(x.shape)), tree)

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        divisible = [axis for axis, n in enumerate(shape) if n and n % self.mesh.size == 0]
        if self.kind == "data" or math.prod(shape) < SMALL_LEAF or not divisible:
            return PartitionSpec()
        longest = max(divisible, key=lambda axis: (shape[axis], axis))
        return PartitionSpec(*[None] * longest, AXIS)

    def spread(self, tree: Any) -> Any:
        """Within jit: leaves the parts of a pytree where this layout keeps them."""
        if self.kind == "data":
            return tree
        return jax.tree.map(jax.lax.with_sharding_constraint, tree, self.of(tree))

    def gather(self, tree: Any) -> Any:
        """Within jit: makes a pytree whole on every device, for a pass over a batch."""
        return tree if self.kind == "data" else constrain(tree, replicated(self.mesh))


def place(tree: Any, shardings: Any) -> Any:
    """Puts values onto the devices.

    Args:
      tree: a pytree of arrays on this host. With several processes each has the whole value, the
        same one, and keeps its part.
      shardings: one for all leaves, or a pytree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])

    return jax.tree.map(put, tree, shardings)


def make_whole(tree: Any, mesh: Mesh) -> Any:
    """Brings arrays on the devices of a mesh, however spread, to every device of it."""
    whole = replicated(mesh)
    if all(x.sharding.is_equivalent_to(whole, x.ndim) for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda t: t, out_shardings=whole)(tree)


def rows_here(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch that lie on the devices of this process, in order."""
    indices = by_example(mesh).addressable_devices_indices_map((batch_size,))
    return sorted(
        {row for index in indices.values() if index for row in range(batch_size)[index[0]]}
    )


def place_rows(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch onto the devices, of which each process gives its `rows_here`."""
    rows = by_example(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), rows)
    put = jax.make_array_from_process_local_data
    return {name: put(rows, np.asarray(value)) for name, value in batch.items()}


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises a UserError unless every device gets the same number of examples."""
    per_pass, devices = batch_size // accumulation, mesh.size
    if per_pass % devices:
        raise UserError(
            f"config.batch_size={batch_size} over config.accumulation={accumulation} gives "
            f"{per_pass} images a pass, which {devices} devices cannot share evenly. "
            f"Use a multiple of {devices * accumulation}."
        )
