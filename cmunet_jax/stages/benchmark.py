"""The benchmark stage: how fast this machine does everything, one table and benchmark.json."""

import datetime
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.benchmark import (
    exported,
    first_step,
    host,
    idle,
    inference,
    machine,
    roofline,
    table,
    training,
    versus,
)
from cmunet_jax.benchmark.cost import Ceilings
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.subject import Training
from cmunet_jax.benchmark.timing import Effort
from cmunet_jax.data import preprocessing, views
from cmunet_jax.stages import devices, export, record, segment, train
from cmunet_jax.train import sharding

FILE = "benchmark.json"
STEPS = ("finetune", "cmunet", "mae", "genesis", "moco", "spark")
_SCHEMA = 1

Case = Callable[[ml_collections.ConfigDict, Effort], Iterator[Row]]


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Measures the chosen cases; a case that fails is a row with its reason, and the rest go on.

    Args:
      config: of this stage.
      workdir: gets benchmark.json, rewritten after every case.

    Returns:
      0, or 1 if something could not be measured.

    Raises:
      UserError: if a case is not known, or the workdir cannot be written.
    """
    chosen = _chosen(config.cases)
    config_lib.choose("config.dtype", config.dtype, objectives.DTYPES)
    workdir = workdir or record.default_workdir(config)
    machine.use_cores(config.threads)
    # PyTorch may need the rest of the accelerator's memory, of which JAX takes most by default.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    devices.set_up()
    effort = Effort(config.repetitions, config.seconds)
    facts = _facts(config)
    print("measuring the ceilings", flush=True)
    ceilings, samples = roofline.measure_ceilings((config.dtype,), effort)
    facts["ceilings"] = {
        "flops_per_second": ceilings.flops_per_second,
        "bytes_per_second": ceilings.bytes_per_second,
        "samples": samples,
    }
    rows: list[Row] = []
    _write(workdir, facts, rows, ceilings)
    for name in chosen:
        print(f"measuring {name}", flush=True)
        for row in _rows_of(name, config, effort):
            rows.append(row)
            _write(workdir, facts, rows, ceilings)
    table.show(rows, ceilings, title=_title(config), notes=_notes(config, ceilings, facts))
    print(workdir / FILE)
    return 1 if any(row.error for row in rows) else 0


def _chosen(text: str) -> list[str]:
    """The cases that `config.cases` names, in the order of `CASES`."""
    names = list(CASES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        config_lib.choose("config.cases", name, (*CASES, "all"))
    return [name for name in CASES if name in names]


def _rows_of(name: str, config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    """The rows of a case; what it dies of becomes its last one."""
    try:
        yield from CASES[name](config, effort)
    except Exception as error:  # A benchmark tells what fails and goes on.
        if not str(error):
            traceback.print_exc()
        reason = " ".join(f"{error or type(error).__name__}".split())[:500]
        yield Row(name, name, error=reason)
    finally:
        jax.clear_caches()  # The next case has the memory of this one's programs.


def set_up(config: ml_collections.ConfigDict, name: str) -> Training:
    """Everything that a training has before its first step.

    Args:
      config: of this stage.
      name: 'finetune' or a pre-training objective.

    Raises:
      UserError: if the training could not start.
    """
    part = _part(config, name)
    objective = objectives.create(part)
    views.check(objective.views, part.views)
    mesh = sharding.create_mesh()
    sharding.check_batch(part.batch_size, part.accumulation, mesh)
    objective.check_batch(part.batch_size, accumulation=part.accumulation)
    inputs = train.prepare(part, train.choose_images(part), None)
    steps = train.durations(part, len(inputs.rows))
    state, tx, rate = train.initial_state(part, objective, None, steps, mesh)
    textbook = part.copy_and_resolve_references()
    with textbook.unlocked():
        textbook.model.fast = False
    return Training(
        config=part,
        objective=objective,
        plain=objectives.create(textbook),
        tx=tx,
        rate=rate,
        state=state,
        batches=lambda: train.open_batches(part, inputs, 0, mesh),
        size=len(inputs.rows),
        mesh=mesh,
    )


def _part(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The config of one training."""
    part = config.finetune if name == "finetune" else config.pretrain[name]
    return part.copy_and_resolve_references()


def _step(name: str) -> Case:
    def case(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
        yield from training.step_rows(name, set_up(config, name), effort)

    return case


def _inference(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    yield from inference.inference_rows(set_up(config, "finetune"), segment.make_forward, effort)


def _export(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    yield from exported.exported_rows(
        set_up(config, "finetune"),
        segment.make_forward,
        export.probabilities,
        side=config.metrics.side,
        effort=effort,
    )


def _idle(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    yield from idle.idle_rows("finetune", set_up(config, "finetune"), effort)


def _remat(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    yield from training.remat_rows("finetune", set_up(config, "finetune"), effort)


def _checkpoint(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    yield from training.checkpoint_rows("finetune", set_up(config, "finetune"), effort)


def _build(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    chain = preprocessing.create(config.finetune.preprocessing)
    yield from host.build_rows(
        config.build, chain, repetitions=config.slow_repetitions, workers=_workers(config)
    )


def _metrics(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    yield from host.metrics_rows(
        images=config.metrics.images,
        side=config.metrics.side,
        size=config.finetune.preprocessing.size,
        effort=Effort(config.slow_repetitions, effort.seconds),
        workers=_workers(config),
    )


def _first_step(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
    repetitions = config.slow_repetitions
    yield from first_step.first_step_rows(
        "finetune", _part(config, "finetune"), repetitions=repetitions
    )


def _rival(name: str, contest_of: Callable[[Training], versus.Contest]) -> Case:
    def case(config: ml_collections.ConfigDict, effort: Effort) -> Iterator[Row]:
        if versus.absent(jax.default_backend()):
            return  # Said below the table.
        subject = set_up(config, name)
        yield from versus.contest_rows(
            contest_of(subject), subject, compile_too=config.torch.compile, effort=effort
        )

    return case


def _rival_inference(subject: Training) -> versus.Contest:
    return versus.inference_contest(subject, segment.make_forward)


CASES: Mapping[str, Case] = {
    **{name: _step(name) for name in STEPS},
    "inference": _inference,
    "export": _export,
    "idle": _idle,
    "remat": _remat,
    "checkpoint": _checkpoint,
    "build": _build,
    "metrics": _metrics,
    "first_step": _first_step,
    "torch_finetune": _rival("finetune", versus.finetune_contest),
    "torch_inference": _rival("finetune", _rival_inference),
    "torch_cmunet": _rival("cmunet", versus.cmunet_contest),
}
"""Name in `config.cases` -> (config, effort) -> rows."""


def _workers(config: ml_collections.ConfigDict) -> int | None:
    return config.threads or None


def _facts(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What identifies the measurement."""
    return {
        "schema": _SCHEMA,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m cmunet_jax.main", *sys.argv[1:]]),
        "machine": machine.describe() | {"load_before": machine.load()},
        "versions": record.versions(),
        "config": config_lib.to_dict(config),
    }


def _write(
    workdir: pathlib.Path, facts: dict[str, Any], rows: list[Row], ceilings: Ceilings
) -> None:
    now = {"load_after": machine.load(), "rows": [row.to_dict(ceilings) for row in rows]}
    record.write_json(workdir / FILE, facts | now)


def _title(config: ml_collections.ConfigDict) -> str:
    part, width = config.finetune, config.finetune.model.width
    return f"U-Net-{width}, {part.preprocessing.size}², batch {config.batch_size}, {config.dtype}"


def _notes(
    config: ml_collections.ConfigDict, ceilings: Ceilings, facts: dict[str, Any]
) -> Iterator[str]:
    """What the table cannot say."""
    about = facts["machine"]
    yield (
        f"machine: {about['cores_usable']} of {about['cores']} cores of {about['processor']}"
        f"{' (virtual)' if about['virtual'] else ''}, devices {', '.join(about['devices'])}; load "
        f"{_load(about['load_before'])} before, {_load(machine.load())} after"
        f"{about['malloc'] and '; ' + about['malloc']}"
    )
    yield (
        f"ceilings: {ceilings.flops_per_second[config.dtype] / 1e9:,.0f} GFLOP/s in {config.dtype} "
        f"(matrix product), {ceilings.bytes_per_second / 1e9:,.1f} GB/s (stream)"
    )
    if not any(name.startswith("torch") for name in _chosen(config.cases)):
        return
    reason = versus.absent(jax.default_backend())
    if reason:
        yield reason
    elif jax.default_backend() == "cpu" and machine.usable_cores() > 1:
        yield (
            "× is PyTorch's time over ours, in the same round. Where other programs want the cores "
            "its threads wait for each other longer than ours: compare with --config.threads=1 then"
        )


def _load(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
