"""The train stage: pre-training and fine-tuning differ in objective, data and starting weights."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import datasets, keys, preprocessing, source, views
from cmunet_jax.evaluation import evaluator
from cmunet_jax.objectives.base import Objective, Variables
from cmunet_jax.stages import hosts, provenance, record, segment
from cmunet_jax.train import (
    checkpoint,
    estimate,
    loop,
    optim,
    processes,
    progress,
    sharding,
    store,
    transfer,
    writers,
)
from cmunet_jax.train import state as state_lib
from cmunet_jax.train.state import TrainState
from cmunet_jax.train.step import TrainStep, picture_maker, spec_of
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError
from tfds_angio.exclusive import exclusive

IN_TRAINING_METRICS = ("dice", "iou", "precision", "recall")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which images a run trains on: `ids` of `config.data.split` of `dataset`."""

    dataset: AngioDataset
    ids: list[str]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The data of a run: the chosen images, prepared or to be prepared; `ids` of the rows."""

    dataset: AngioDataset
    rows: source.PreparedSplit | source.OnTheFly
    preprocessing: preprocessing.Preprocessing
    ids: list[str]

    def of_step(self, step: int, *, seed: int, batch_size: int) -> list[str]:
        """The ids of the images of one step, from 0: a function of its number."""
        indices = source.batch_indices(seed, step, size=len(self.ids), batch_size=batch_size)
        return [self.ids[int(i)] for i in indices]


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Trains as the config says; the same command continues an interrupted run.

    Weights come from, in this order: the workdir's own checkpoint, `config.init_from`, chance.

    Returns:
      0 when all steps are done, loop.EXIT_PREEMPTED after SIGTERM or Ctrl-C (state saved).

    Raises:
      UserError: on anything the user can mend; nothing is written before the checks are done.
    """
    config = config.copy_and_resolve_references()
    workdir = workdir or record.default_workdir(config)
    objective = objectives.create(config)
    views.check(objective.views, config.views)
    mesh = sharding.create_mesh()
    sharding.check_batch(config.batch_size, config.accumulation, mesh)
    sharding.Layout(mesh, config.sharding)
    objective.check_batch(config.batch_size, accumulation=config.accumulation)
    _require_one_run(config, workdir)
    record.check_workdir(workdir, config)
    with exclusive(workdir) if processes.is_first() else contextlib.nullcontext():
        record.check_workdir(workdir, config)  # Another may have ended meanwhile.
        return _run(config, workdir, objective, mesh)


def _run(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    objective: Objective,
    mesh: jax.sharding.Mesh,
) -> int:
    """Trains in a workdir that is this run's alone."""
    chosen = choose_images(config, progress=processes.is_first())
    same = {"the data set's content": chosen.dataset.fingerprint, "the images": chosen.ids}
    processes.require_same(same, seconds=processes.DATA_SECONDS)
    before = record.read_facts(workdir)
    record.check_data(workdir, before, chosen.dataset)
    provenance.check_same_labels(workdir, before, config, chosen)
    # A run that has saved goes on from there, also where init_from is no longer to be found.
    resuming = bool(before) and bool(store.step_folders(workdir / "checkpoints"))
    initial = None
    if config.get("init_from") and not resuming:
        initial = checkpoint.load(config.init_from)
        if config.get("eval_split"):  # Better now than when the result is evaluated.
            provenance.check_unseen(initial.config, chosen.dataset, config.eval_split)
    facts = before if resuming else provenance.of_training(config, chosen, initial)
    inputs = prepare(config, chosen, initial)
    steps = durations(config, len(chosen.ids))
    state, tx, rate = initial_state(config, objective, initial, steps, mesh)
    with checkpoint.Checkpointer(
        workdir / "checkpoints",
        config=config_lib.to_dict(config) | {"provenance": facts},
        preprocessing=inputs.preprocessing.to_dict(),
        keep_latest=config.checkpoint.keep,
        best_metric=config.checkpoint.best or None,
    ) as checkpointer:
        if restored := checkpointer.restore(state):
            record.check_checkpoint(workdir, restored.step, restored.meta.config, config)
            state = restored.state
            print(f"Continuing {workdir} at step {restored.step:,} of {steps['total']:,}.")
        if int(state.step) >= steps["total"]:
            print(f"Nothing to do: {workdir} has its {steps['total']:,} steps.")
            return 0
        write = functools.partial(record.write, workdir, config, facts)
        return _fit(
            config, workdir, objective, inputs, state, tx, rate, steps, checkpointer, mesh, write
        )


def _require_one_run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises a UserError unless all processes have the same number, workdir and config."""
    own = ("hosts.", "data.dir", "data.source", "data.workers")
    shared = {f"config.{k}": v for k, v in config_lib.flatten(config) if not k.startswith(own)}
    facts: dict[str, processes.Fact] = {"the number of processes": str(hosts.announced(config))}
    facts |= {"--workdir": str(workdir.resolve()), "the config": shared}
    processes.require_same(facts, seconds=processes.START_SECONDS)


def choose_images(
    config: ml_collections.ConfigDict, prefix: str = "", *, progress: bool = True
) -> Chosen:
    """Opens (or builds) the data and picks the images, before anything is prepared.

    Args:
      config: of a training stage.
      prefix: of the keys in messages, for a config inside another.
      progress: whether to show a bar where the data set is built.

    Raises:
      UserError: naming the key, if there is no such data set, a split is empty, or it has fewer
        images than labels or a batch ask for.
    """
    dataset = datasets.open_or_build(config.data, progress=progress)
    split = config.data.split
    datasets.size_of(dataset, split, key=f"{prefix}data.split")
    if config.stage == "finetune":
        dataset, ids = datasets.labelled_subset(
            dataset,
            labels=config.labels,
            draw=config.draw,
            folds=config.get("folds", 0),
            fold=config.get("fold", 0),
            label_ids=config.get("label_ids", ""),
            prefix=prefix,
        )
        if config.eval_split:
            datasets.size_of(dataset, config.eval_split, key=f"{prefix}eval_split")
    else:
        ids = dataset.ids(split)
    if config.batch_size > len(ids):
        raise UserError(
            f"config.{prefix}batch_size={config.batch_size} is larger than the {len(ids)} images "
            f"of {dataset.name} ({split}) to train on. Use at most {len(ids)}."
        )
    return Chosen(dataset, ids)


def prepare(
    config: ml_collections.ConfigDict, chosen: Chosen, initial: checkpoint.Loaded | None
) -> Inputs:
    """Preprocesses the chosen images, as the starting weights were trained on."""
    chain = preprocessing.create(config.preprocessing)
    if initial and initial.preprocessing != chain.to_dict():
        changes = config_lib.differences(chain.to_dict(), initial.preprocessing)
        raise UserError(
            f"config.preprocessing differs from that of config.init_from={initial.path} "
            f"({changes[0]}). Weights only work on images prepared as in their training: use the "
            "same size and preset as in pre-training, e.g. --config configs/finetune.py:size=small"
        )
    dataset, split = chosen.dataset, config.data.split
    options = dict(ids=chosen.ids, with_masks=config.stage == "finetune")
    if config.data.streaming:
        return Inputs(dataset, source.OnTheFly(dataset, split, chain, **options), chain, chosen.ids)
    options |= dict(workers=config.data.workers or None, progress=processes.is_first())
    rows = source.prepare(dataset, split, chain, **options)
    have = estimate.available_bytes()
    if have and rows.nbytes > have // 2:
        raise UserError(
            f"{len(chosen.ids):,} prepared images take {rows.nbytes / 2**30:.1f} GiB, more than "
            f"half of the {have / 2**30:.1f} GiB that the device has free. Stream them: "
            "--config.data.streaming=True"
        )
    return Inputs(dataset, rows, chain, chosen.ids)


def durations(config: ml_collections.ConfigDict, examples: int) -> dict[str, int]:
    """All durations of a config in steps."""
    common = dict(batch_size=config.batch_size, examples=examples)
    total = config_lib.steps_of(config.train_for, key="train_for", **common)
    if not total:
        raise UserError(f"config.train_for='{config.train_for}': train for at least one step.")
    keys = {
        "warmup": ("optim.warmup", config.optim.warmup),
        "log": ("log_every", config.log_every),
        "eval": ("eval_every", config.eval_every),
        "pictures": ("pictures_every", config.pictures_every),
        "save": ("checkpoint.every", config.checkpoint.every),
    }
    steps = {
        name: config_lib.steps_of(value, key=key, total=total, **common)
        for name, (key, value) in keys.items()
    }
    return steps | {"total": total}


def initial_state(
    config: ml_collections.ConfigDict,
    objective: Objective,
    initial: checkpoint.Loaded | None,
    steps: dict[str, int],
    mesh: jax.sharding.Mesh,
) -> tuple[TrainState, optax.GradientTransformation, optax.Schedule]:
    """Fresh variables, with the pre-trained ones put in where the config asks for it."""
    rate = optim.schedule(
        config.optim,
        batch_size=config.batch_size,
        total_steps=steps["total"],
        warmup_steps=steps["warmup"],
    )
    tx = optim.create(config.optim, rate, total_steps=steps["total"])
    side = config.views.get("crop", config.preprocessing.size)
    init = jax.jit(objective.init, static_argnums=1)
    variables = init(keys.stream_key(config.seed, "init"), (side, side, 1))
    if initial:
        variables = _transfer(variables, initial)
    state = state_lib.create(variables, tx, ema=config.ema_decay > 0)
    layout = sharding.Layout(mesh, config.get("sharding", "data"))
    return sharding.place(state, layout.of(state)), tx, rate


def _transfer(variables: Variables, initial: checkpoint.Loaded) -> Variables:
    """Loads encoder and decoder from a pre-training checkpoint and says what was done."""
    plan = objectives.create(config_lib.from_dict(initial.config)).transfer
    params, stats, report = transfer.transfer(
        variables.params, variables.batch_stats, initial.params, initial.batch_stats, plan
    )
    print(f"Weights from {initial.path} (step {initial.step:,}, {initial.digest[:12]}):")
    print(transfer.format_report(report), flush=True)
    return dataclasses.replace(variables, params=params, batch_stats=stats)


def _fit(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    objective: Objective,
    inputs: Inputs,
    state: TrainState,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    steps: dict[str, int],
    checkpointer: checkpoint.Checkpointer,
    mesh: jax.sharding.Mesh,
    write_record: Callable[[], Any],
) -> int:
    """Puts the parts together and trains."""
    train_step = TrainStep(objective, tx, spec_of(config, size=len(inputs.rows)), mesh)
    hooks = loop.Hooks(
        log_every=steps["log"],
        eval_every=steps["eval"],
        pictures_every=steps["pictures"],
        save_every=steps["save"],
        save_evaluated=bool(config.checkpoint.best),
        evaluate=_in_training_evaluator(config, objective, inputs, mesh),
        pictures=picture_maker(objective, train_step, mesh),
    )
    _announce(config, workdir, inputs, state, steps)
    done, total = int(state.step), steps["total"]
    told = progress.Progress(total, config.batch_size, start=done)
    with open_batches(config, inputs, done, mesh) as batches:
        first = next(batches)
        step = loop.compile_step(train_step, state, first, steps=total - done, stage=config.stage)
        write_record()
        with writers.create_writer(workdir, start_step=done) as writer:
            try:
                loop.fit(
                    step,
                    state,
                    itertools.chain([first], batches),
                    total_steps=total,
                    hooks=hooks,
                    checkpointer=checkpointer,
                    writer=writer,
                    progress=told if processes.is_first() else lambda done: None,
                    rate=rate,
                    stage=config.stage,
                    batch_ids=functools.partial(
                        inputs.of_step, seed=config.seed, batch_size=config.batch_size
                    ),
                )
            except loop.Preempted as stop:
                print(f"Stopped by {stop} Run the same command to continue.")
                return loop.EXIT_PREEMPTED
    print(f"Done: {total:,} steps. Checkpoint: {workdir / 'checkpoints'}")
    return 0


@contextlib.contextmanager
def open_batches(
    config: ml_collections.ConfigDict, inputs: Inputs, start: int, mesh: jax.sharding.Mesh
) -> Iterator[Iterator[Any]]:
    """What each step takes, from `start` on: always the resident arrays, or streamed batches."""
    if not isinstance(inputs.rows, source.OnTheFly):
        # The step gathers its own batch from its number.
        yield itertools.repeat(sharding.place(inputs.rows.arrays(), sharding.replicated(mesh)))
        return
    with source.stream(
        inputs.rows,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start,
        workers=config.data.workers,
        share=sharding.rows_here(mesh, config.batch_size),
    ) as raw:
        yield (sharding.place_rows(batch, mesh) for batch in raw)


def _in_training_evaluator(
    config: ml_collections.ConfigDict,
    objective: Objective,
    inputs: Inputs,
    mesh: jax.sharding.Mesh,
) -> Callable[[TrainState], dict[str, float]] | None:
    """Mean metrics of a few validation images; the evaluate stage calls the same evaluator."""
    if config.stage != "finetune" or not config.eval_split:
        return None
    forward = segment.make_forward(objective, mesh)
    ids = inputs.dataset.ids(config.eval_split)[: config.eval_images or None]
    of_split = (inputs.dataset, config.eval_split, inputs.preprocessing)
    prepare = functools.partial(segment.prepare, *of_split, config.data, ids=ids, progress=False)
    prepared = functools.cache(prepare)  # At the first evaluation, if there is one.

    def evaluate(state: TrainState) -> dict[str, float]:
        result = evaluator.evaluate(
            forward,
            sharding.make_whole(segment.weights_of(state), mesh),
            *of_split,
            ids=ids,
            prepared=prepared(),
            batch_size=segment.round_up(config.batch_size, mesh),
            metrics=IN_TRAINING_METRICS,
            workers=config.data.workers or None,
            progress=False,
            pictures=False,
            resamples=1,  # The intervals of a few images are not looked at.
        )
        means = result.summary["metrics"]
        return {f"{config.eval_split}/{name}": float(means[name]["mean"]) for name in means}

    return evaluate


def _announce(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    inputs: Inputs,
    state: TrainState,
    steps: dict[str, int],
) -> None:
    """Says in three lines what is about to happen."""
    parameters = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state.params))
    start = "pre-trained weights" if config.get("init_from") else "fresh weights"
    print(
        f"{config.stage}: {config.objective.name} ({config.objective.preset}), U-Net width "
        f"{config.model.width}, {parameters / 1e6:.2f} M parameters, {start}\n"
        f"data: {inputs.dataset.name} {config.data.split}, {len(inputs.rows)} images, "
        f"preprocessing {inputs.preprocessing.name} at {inputs.preprocessing.size}²\n"
        f"{steps['total']:,} steps of {config.batch_size} images on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; results in {workdir}",
        flush=True,
    )
