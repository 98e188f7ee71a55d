"""SparK: the loss in training mode and, where a case holds them, statistics and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cmunet_jax.interop import torch_names
from cmunet_jax.objectives.base import Variables
from cmunet_jax.objectives.spark import SparK
from tests.golden.case import Case, Check, formula_weights, relative, width_of

PATTERN = "*_spark_w*"
LOSS, STATISTICS, GRADIENTS = 1e-4, 1e-4, 1e-6


def formula_variables(objective: SparK, shape: tuple[int, int, int], seed: int) -> Variables:
    """Variables with formula weights."""
    v = jax.eval_shape(lambda k: objective.init(k, shape), jax.random.key(0))
    entries = torch_names.spark_entries()
    params, stats = formula_weights(entries, v.params, v.batch_stats, seed)
    return Variables(params=params, batch_stats=stats, extra={})


def check(case: Case, stem: str) -> list[Check]:
    """Compares one case: the value in float32, and gradients in float64."""
    variables = formula_variables(
        SparK(width_of(stem)), (*case["x"].shape[1:], 1), int(case["seed"])
    )
    loss, stats, _ = _run(case, stem, variables, jnp.float32)
    checks = [relative("loss", loss, case["loss"], LOSS)]
    checks += _compare(case, "after_one_train_forward", variables.params, stats, STATISTICS)
    if any(key.startswith("gradient/") for key in case):
        # Rounding that flips a rectifier moves a gradient by more than what is looked for.
        with jax.enable_x64(True):
            _, _, gradients = _run(case, stem, variables, jnp.float64)
        checks += _compare(case, "gradient", gradients, variables.batch_stats, GRADIENTS)
    return checks


def _run(case: Case, stem: str, variables: Variables, dtype: type) -> tuple:
    """Loss, running statistics after it, and gradients."""
    objective = SparK(width_of(stem), dtype=jnp.dtype(dtype).name)
    wide = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
    views = {
        "image": jnp.asarray(case["x"], dtype)[..., None],
        "patches": ~jnp.asarray(case["active"]).astype(bool),
    }

    @jax.jit
    def run(params, state):
        def loss(params):
            return objective.loss(params, state, views, {}, jax.random.key(0), train=True)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, out), gradients = run(wide.params, wide.state)
    return value, out.state["batch_stats"], gradients


def _compare(case: Case, group: str, params, stats, tolerance: float) -> list[Check]:
    """Every tensor of a group of the case, by its PyTorch name."""
    ours = torch_names.to_torch(params, stats, torch_names.spark_entries())
    return [
        relative(key, ours[name], np.asarray(value), tolerance)
        for key, value in case.items()
        for prefix, _, name in [key.partition("/")]
        if prefix == group
    ]
