"""How long a training takes from its start to its first step, in processes of their own."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.sweep import child

CACHE = "CMUNET_JAX_CACHE"


def first_step_rows(
    name: str, config: ml_collections.ConfigDict, *, repetitions: int
) -> Iterator[Row]:
    """Starts a training with an empty compilation cache and again with what that left there.

    Timed within the process: from the start of the stage to the end of the first step, imports not
    included.
    """
    cold, warm, anew = [], [], []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            cache = pathlib.Path(folder, "cache")
            cold.append(_start(config, pathlib.Path(folder, "cold"), cache))
            before = _bytes(cache)
            warm.append(_start(config, pathlib.Path(folder, "warm"), cache))
            anew.append((_bytes(cache) - before) / max(before, 1))
    yield Row("first_step", f"{name}: first step, cold", cold)
    yield Row("first_step", f"{name}: first step, cached", warm)
    yield Row(
        "first_step", f"{name}: compiled anew when cached", anew, unit="%",
        note="bytes added to the cache; programs that compile in 0.1 s are kept only when that "
        "happens to take longer",
    )  # fmt: skip


def _bytes(cache: pathlib.Path) -> int:
    """Of the compiled programs in a cache; the times of their last use lie beside them."""
    return sum(p.stat().st_size for p in cache.rglob("*-cache"))


def _start(config: ml_collections.ConfigDict, folder: pathlib.Path, cache: pathlib.Path) -> float:
    """Seconds to the first step of one training that ends after a few.

    Raises:
      RuntimeError: with what the process said.
    """
    folder.mkdir()
    spec: dict[str, Any] = {"config": config_lib.to_dict(config), "measure": True}
    (folder / child.SPEC).write_text(json.dumps(spec))
    process = child.Child(folder, env={CACHE: str(cache)})
    outcome = process.outcome(process.wait())
    if "start_seconds" not in outcome:
        raise RuntimeError(f"a training did not start: {outcome.get('error')}")
    return float(outcome["start_seconds"])
