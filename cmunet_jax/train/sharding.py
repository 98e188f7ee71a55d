"""One mesh, one axis: data parallelism through jit and NamedSharding."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tfds_angio.errors import UserError

AXIS = "data"


def create_mesh() -> Mesh:
    """Returns the mesh of all devices on one axis named 'data'."""
    # Auto axes: under explicit ones the contrastive product of a batch with itself is refused.
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters, optimiser state and the resident data set."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of arrays whose `axis` counts examples."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def constrain(tree: Any, sharding: NamedSharding) -> Any:
    """Applies a sharding to every leaf of a traced pytree."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises a UserError unless every device gets the same number of examples."""
    per_pass, devices = batch_size // accumulation, mesh.size
    if per_pass % devices:
        raise UserError(
            f"config.batch_size={batch_size} over config.accumulation={accumulation} gives "
            f"{per_pass} images a pass, which {devices} devices cannot share evenly. "
            f"Use a multiple of {devices * accumulation}."
        )
