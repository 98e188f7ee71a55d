"""The select stage: from a pool and an encoder, the images whose annotation should help most."""

import hashlib
import pathlib
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from cmunet_jax import config as config_lib
from cmunet_jax.data import datasets, id_lists
from cmunet_jax.selection import distances, features, limits, methods, output
from cmunet_jax.selection import pool as pools
from cmunet_jax.stages import encode, evaluate, record, segment
from cmunet_jax.train import estimate, sharding
from tfds_angio.base import default_workers

EXIT_INCOMPLETE = 3
_PRINTED = 20
_BASELINE_DRAWS = 20


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Chooses `config.k` images and writes the list, its record and pictures.

    Args:
      config: of this stage.
      workdir: where to; default runs/select.

    Returns:
      0; 3 if images could not be read (they are named, and the choice is among the others).

    Raises:
      UserError: if checkpoint, pool or limits cannot be used; nothing is written.
    """
    workdir = pathlib.Path(workdir or record.default_workdir(config))
    output.check(workdir, overwrite=config.overwrite)
    config_lib.choose("config.features", config.features, features.LEVELS)
    config_lib.choose("config.method", config.method, tuple(methods.METHODS))
    config_lib.choose("config.masks", config.masks, ("labelled", "ignore"))
    mesh = sharding.create_mesh()
    encoder = encode.restore(
        config.checkpoint, step=str(config.step), weights=config.weights, mesh=mesh
    )
    pool = _pool(config, encoder)
    rules = dict(k=config.k, per_patient=config.per_patient, centres=config.centres)
    workers = config.data.workers or default_workers()

    def why_not(position: int) -> str:
        found = features.prepared(pool, encoder.preprocessing, position)
        return found if isinstance(found, str) else ""

    # Better now than when the features are there.
    limits.check_readable(pool.items, why_not, workers=workers, **rules)
    with estimate.memory_errors(batch_size=config.batch_size):
        embedded = features.embed(
            encoder.encode,
            pool,
            encoder.preprocessing,
            levels=config.features,
            batch_size=segment.round_up(config.batch_size, mesh),
            workers=workers,
        )
    within = limits.of_items(embedded.pool.items, **rules)
    ids = [item.id for item in embedded.pool.items]
    options = dict(seed=config.seed, radius=str(config.radius))
    chosen = methods.select(config.method, embedded.features, ids, within, config.k, **options)
    facts = _facts(config, encoder, embedded) | {"distance": _distance(embedded, within, chosen)}
    title = f"{config.method}: {config.k} of {len(ids)} images"
    rows = output.write(workdir, embedded, chosen, facts, title=title)
    _print(rows, embedded, facts)
    print(workdir / output.LIST)
    return EXIT_INCOMPLETE if embedded.failed else 0


def _pool(config: ml_collections.ConfigDict, encoder: encode.Restored) -> pools.Pool:
    """The pool that the config names, with what is labelled already."""
    if config.input:
        pool = pools.of_folder(
            config.input, pattern=config.pattern, manifest=config.manifest, masks=config.masks
        )
        _tell(pool)
    else:
        dataset = evaluate.open_data(config, encoder.loaded.config)
        datasets.size_of(dataset, config.split, key="split")
        pool = pools.of_dataset(dataset, config.split, masks=config.masks)
    if config.labelled:
        ids = id_lists.read(config.labelled, key="labelled")
        pool = pools.mark_labelled(pool, ids, path=config.labelled)
    return pool


def _tell(pool: pools.Pool) -> None:
    """Which DICOM is which, what is irregular about files; images of unknown patients in a line."""
    for path, name in pool.names:
        print(f"{path} -> {name}")
    unknown = [p for p in pool.problems if p.problem == "no patient id"]
    others = [p for p in pool.problems if p.problem != "no patient id"]
    for problem in others[:_PRINTED]:
        print(f"! {problem}")
    if len(others) > _PRINTED:
        print(f"! and {len(others) - _PRINTED} more")
    if unknown:
        print(
            f"! {len(unknown)} images of unknown patients count as one patient each: "
            "config.pattern or config.manifest says whose they are"
        )


def _facts(
    config: ml_collections.ConfigDict, encoder: encode.Restored, embedded: features.Embedded
) -> dict[str, Any]:
    """Where a selection came from."""
    loaded, items = encoder.loaded, embedded.pool.items
    listed = "".join(f"{i.id}\0{digest}\n" for i, digest in zip(items, embedded.sha256))
    return {
        "checkpoint": {
            "path": str(loaded.path),
            "step": loaded.step,
            "digest": loaded.digest,
            "weights": encoder.kind,
            "objective": loaded.config["objective"]["name"],
        },
        "preprocessing": dict(loaded.preprocessing),
        "features": {"levels": config.features, "numbers": embedded.features.shape[1]},
        "pool": {
            **embedded.pool.about,
            "images": len(items),
            "patients": len({i.patient for i in items if i.patient}),
            "centres": len({i.centre for i in items if i.centre}),
            # Of ids and file contents, for a folder, which has no fingerprint of its own.
            "sha256": hashlib.sha256(listed.encode()).hexdigest(),
        },
        "config": _public(config, embedded.pool),
        "versions": record.versions(),
    }


def _public(config: ml_collections.ConfigDict, pool: pools.Pool) -> dict[str, Any]:
    """The config; with DICOMs without the paths of the pool, which may be names of patients."""
    values = config_lib.to_dict(config)
    private = ("input", "manifest") if pool.about.get("folder") == "" else ()
    return {key: "" if key in private else value for key, value in values.items()}


def _distance(
    embedded: features.Embedded, within: limits.Limits, chosen: methods.Chosen
) -> dict[str, float]:
    """Mean distance from the pool to the nearest labelled or chosen image, beside random draws."""
    labelled = np.flatnonzero(within.labelled)
    ids = [item.id for item in embedded.pool.items]

    def mean(choices: tuple[methods.Choice, ...]) -> float:
        picked = np.concatenate([labelled, [c.index for c in choices]]).astype(np.intp)
        return float(distances.nearest(embedded.features, picked).mean())

    draws = [
        mean(
            methods.select(
                "random", embedded.features, ids, within, len(chosen.choices), seed=seed
            ).choices
        )
        for seed in range(_BASELINE_DRAWS)
    ]
    return {
        "chosen": mean(chosen.choices),
        "random": float(np.mean(draws)),
        "random_lowest": float(np.min(draws)),
        "random_highest": float(np.max(draws)),
    }


def _print(rows: list[dict[str, Any]], embedded: features.Embedded, facts: dict[str, Any]) -> None:
    """The list, what failed, and how near the pool is to it."""
    columns = [c for c in ("rank", "id", "patient", "centre", "why") if any(r[c] for r in rows)]
    table = Table(*columns)
    for row in rows[:_PRINTED]:
        table.add_row(*(str(row[column]) for column in columns))
    Console().print(table)
    if len(rows) > _PRINTED:
        print(f"and {len(rows) - _PRINTED} more in the list")
    for name, reason in embedded.failed[:_PRINTED]:
        print(f"! {name}: {reason}: left out")
    if len(embedded.failed) > _PRINTED:
        print(f"! and {len(embedded.failed) - _PRINTED} more: selection.json names them")
    near = facts["distance"]
    print(
        f"{facts['pool']['images']} images, {facts['pool']['patients']} known patients or runs. "
        f"Mean distance to the nearest chosen or labelled one: {near['chosen']:.3f}; of random "
        f"draws {near['random']:.3f} ({near['random_lowest']:.3f} to {near['random_highest']:.3f})"
    )
