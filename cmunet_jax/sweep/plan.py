"""From a config to trials: pre-trainings, searches and fine-tunings, with keys and dependencies."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax.sweep import fairness, variants
from tfds_angio.errors import UserError

SELECTED = "selected"  # stands for a learning rate that a search has yet to find
METRICS = ("dice", "iou", "precision", "recall")  # that training watches; the higher the better
_DURATION = re.compile(r"^\s*([0-9.e]+)\s*(\D+)$")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training, with its evaluation where it has one.

    Attributes:
      key: 16 hex digits: hash of the resolved config, the data's fingerprint and `depends`.
      name: for people, unique in a plan.
      kind: 'pretrain', 'search' (a short fine-tuning that scores a learning rate) or 'finetune'.
      method: objective that the network is pre-trained with, or 'scratch'.
      labels: labelled images, None for a pre-training.
      draw: of the labelled images, likewise.
      seed: of the training.
      learning_rate: None where a search chooses it.
      variant: '' or the name of what is changed.
      fold: left out of the labelled images, and scored; None without folds.
      depends: keys of trials that must have ended before.
      steps: optimiser steps.
      config: of the train stage; `init_from` is 'trial:<key>'.
      evaluation: of the evaluate stage, for 'finetune'; else None.
      selection: {'split', 'metric'} that scores the trial; None without.
    """

    key: str
    name: str
    kind: str
    method: str
    labels: int | None
    draw: int | None
    seed: int
    learning_rate: float | None
    variant: str
    fold: int | None
    depends: tuple[str, ...]
    steps: int
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    selection: Mapping[str, str] | None

    def entry(self) -> dict[str, Any]:
        """As it stands in plan.json: without the configs."""
        values = dataclasses.asdict(self)
        values["depends"] = list(self.depends)
        return {k: v for k, v in values.items() if k not in ("config", "evaluation", "selection")}


Examples = Callable[[ml_collections.ConfigDict], int]


def make_plan(
    config: ml_collections.ConfigDict, *, fingerprint: str, examples: Examples
) -> list[Trial]:
    """Lists the trials of a sweep, each after those that it depends on.

    The same config and data give the same list, everywhere. Trials that would be equal (a variant
    that changes nothing for a method) are listed once.

    Args:
      config: of the sweep stage.
      fingerprint: of the data set.
      examples: training config -> images that it trains on; raises where there are too few.

    Raises:
      UserError: if the config asks for nothing, for something unknown or for something twice.
    """
    check(config)
    planner = _Planner(config, fingerprint, examples)
    found: dict[str, Trial] = {}
    for trial in planner.trials():
        found.setdefault(trial.key, trial)
    fairness.check_budgets(config, budgets(found.values()))
    order = {"pretrain": 0, "search": 1, "finetune": 2}
    # Draw after draw, so that a sweep that is stopped early has compared all methods.
    return sorted(
        found.values(), key=lambda t: (order[t.kind], bool(t.variant), t.draw or 0, t.seed)
    )


def budgets(trials: Iterable[Trial]) -> dict[str, fairness.Budget]:
    """The length of each method's pre-training, without variants."""
    return {
        t.method: fairness.Budget(t.steps, t.config["batch_size"])
        for t in trials
        if t.kind == "pretrain" and not t.variant
    }


def strings(values: Any) -> tuple[str, ...]:
    """('a', 'b') of a tuple or of 'a,b', which is how a command line gives it."""
    parts = [values] if isinstance(values, str) else list(values)
    return tuple(p.strip() for part in parts for p in str(part).split(",") if p.strip())


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be known without data.

    Raises:
      UserError: naming the key.
    """
    methods = strings(config.methods)
    if not methods:
        raise UserError(
            "config.methods is empty, so there is nothing to do. Name at least one, for example "
            "--config.methods=scratch,cmunet"
        )
    for method in methods:
        config_lib.choose("config.methods", method, ("scratch", *config.pretrain.keys()))
    for key in ("labels", "draws", "seeds", "learning_rates"):
        values = tuple(config[key])
        if values in ((), ("",)):  # The second is what a flag with nothing after its '=' gives.
            raise UserError(f"config.{key} is empty: give at least one value.")
        if len(set(values)) != len(values):
            raise UserError(f"config.{key}={values} names a value twice.")
        bad = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
        positive = key == "learning_rates"
        if bad or min(values) < 0 or (positive and min(values) == 0):
            wanted = "a number above 0" if positive else "0 or more"
            raise UserError(f"config.{key}={values}: every value must be {wanted}.")
    if config.lease_seconds < 1 or config.max_attempts < 1:
        raise UserError("config.lease_seconds and config.max_attempts must be at least 1.")
    if not 0 < config.search.fraction <= 1:
        raise UserError(f"config.search.fraction={config.search.fraction} must be in (0, 1].")
    config_lib.choose("config.search.metric", config.search.metric, METRICS)
    if config.search.folds == 1 or config.search.folds < 0:
        raise UserError("config.search.folds must be 0 (score on config.search.split) or over 1.")


class _Planner:
    """Makes trials; remembers pre-trainings, which others share."""

    def __init__(self, config: ml_collections.ConfigDict, fingerprint: str, examples: Examples):
        self._sweep, self._fingerprint = config, fingerprint
        self._examples, self._counted = examples, dict[str, int]()

    def trials(self) -> Iterator[Trial]:
        sweep = self._sweep
        base = variants.parts_of(sweep)
        for method in strings(sweep.methods):
            for name, changes in variants.of(sweep, method):
                parts = variants.apply(base, changes, method) if name else base
                if name and variants.same_for(method, parts, base):
                    continue
                fairness.guard(sweep, parts, name)
                yield from self._of_method(method, name, parts, base)

    def _of_method(
        self, method: str, variant: str, parts: variants.Parts, base: variants.Parts
    ) -> Iterator[Trial]:
        sweep = self._sweep
        before = self._pretrainings(method, variant, parts)
        yield from before.values()
        # A variant takes over the rates of the study itself where it has no search of its own.
        searched = (variant, parts, before)
        if variant and not sweep.search.variants:
            searched = ("", base, self._pretrainings(method, "", base))
            if len(tuple(sweep.learning_rates)) > 1:
                yield from searched[2].values()
        wanted = tuple(sweep.variant_labels) if variant else ()
        for labels in wanted or tuple(sweep.labels):
            searches = list(self._searches(method, labels, *searched))
            yield from searches
            for draw in sweep.draws:
                for seed in sweep.seeds:
                    yield self._finetuning(
                        method, variant, labels, draw, seed, parts, before, searches
                    )

    def _pretrainings(self, method: str, variant: str, parts: variants.Parts) -> dict[int, Trial]:
        """The pre-training of each seed; nothing from scratch."""
        seeds = self._sweep.seeds if method != "scratch" else ()
        return {seed: self._pretraining(method, variant, seed, parts) for seed in seeds}

    def _pretraining(self, method: str, variant: str, seed: int, parts: variants.Parts) -> Trial:
        config = parts.pretrain[method].copy_and_resolve_references()
        config.seed = seed
        label = "/".join(filter(None, [method, variant, "pre-training", f"seed {seed}"]))
        return self._trial(
            label,
            "pretrain",
            config,
            (),
            method=method,
            labels=None,
            draw=None,
            seed=seed,
            learning_rate=None,
            variant=variant,
        )

    def _searches(
        self,
        method: str,
        labels: int,
        variant: str,
        parts: variants.Parts,
        before: Mapping[int, Trial],
    ) -> Iterator[Trial]:
        """The first draw and seed at every rate (and fold); nothing where there is one rate."""
        sweep = self._sweep
        rates, folds = tuple(sweep.learning_rates), sweep.search.folds
        if len(rates) < 2:
            return
        seed, draw = sweep.seeds[0], sweep.draws[0]
        for rate in rates:
            for fold in range(folds) if folds else (None,):
                config = self._supervised(parts, labels, draw, seed, before)
                config.optim.learning_rate = float(rate)
                config.train_for = scaled(config.train_for, sweep.search.fraction)
                split = "fold" if folds else sweep.search.split
                config.eval_split, config.eval_images = split, 0
                config.eval_every, config.pictures_every = "0 steps", "0 steps"
                config.checkpoint.best = ""  # The last weights are scored, whatever the rate.
                if folds:
                    config.folds, config.fold = folds, fold
                    # As released: fewer images than a batch are one batch.
                    wanted, config.batch_size = config.batch_size, 1
                    config.batch_size = min(wanted, self._count(config)[0])
                texts = [method, variant, f"{self._count(config)[1]} labels", f"draw {draw}"]
                texts += [f"rate {rate:g}", "" if fold is None else f"fold {fold}", f"seed {seed}"]
                yield self._trial(
                    "/".join(filter(None, texts)) + "/search",
                    "search",
                    config,
                    self._needs(before, seed),
                    selection={"split": split, "metric": sweep.search.metric},
                    method=method,
                    labels=self._count(config)[1],
                    draw=draw,
                    seed=seed,
                    learning_rate=float(rate),
                    variant=variant,
                    fold=fold,
                )

    def _finetuning(
        self,
        method: str,
        variant: str,
        labels: int,
        draw: int,
        seed: int,
        parts: variants.Parts,
        before: Mapping[int, Trial],
        searches: Sequence[Trial],
    ) -> Trial:
        config = self._supervised(parts, labels, draw, seed, before)
        rate = float(self._sweep.learning_rates[0])
        with config.unlocked(), config.ignore_type():
            config.optim.learning_rate = SELECTED if searches else rate
        count = self._count(config)[1]
        texts = [method, f"{count} labels", f"draw {draw}", f"seed {seed}", variant]
        evaluation = parts.evaluate.copy_and_resolve_references()
        evaluation.split = self._sweep.test_split
        watched = config.eval_split
        return self._trial(
            "/".join(filter(None, texts)),
            "finetune",
            config,
            (*self._needs(before, seed), *(trial.key for trial in searches)),
            evaluation=config_lib.to_dict(evaluation),
            selection={"split": watched, "metric": self._sweep.search.metric} if watched else None,
            method=method,
            labels=count,
            draw=draw,
            seed=seed,
            learning_rate=None if searches else rate,
            variant=variant,
        )

    def _supervised(
        self,
        parts: variants.Parts,
        labels: int,
        draw: int,
        seed: int,
        before: Mapping[int, Trial],
    ) -> ml_collections.ConfigDict:
        config = parts.finetune.copy_and_resolve_references()
        config.labels, config.draw, config.seed = int(labels), int(draw), int(seed)
        config.init_from = f"trial:{before[seed].key}" if before else ""
        return config

    def _needs(self, before: Mapping[int, Trial], seed: int) -> tuple[str, ...]:
        return (before[seed].key,) if before else ()

    def _count(self, config: ml_collections.ConfigDict) -> tuple[int, int]:
        """(images that it trains on, labelled images of which a fold may be left out)."""
        whole = config.copy_and_resolve_references()
        if whole.get("folds"):
            whole.folds = whole.fold = 0
            whole.eval_split = ""  # The split `fold` is not there without folds.
        counts = []
        for one in (config, whole):
            keys = ("stage", "data", "labels", "draw", "folds", "fold", "batch_size", "eval_split")
            sign = config_lib.digest(
                {k: v for k, v in config_lib.to_dict(one).items() if k in keys}
            )
            if sign not in self._counted:
                self._counted[sign] = self._examples(one)
            counts.append(self._counted[sign])
        return counts[0], counts[1]

    def _trial(
        self,
        name: str,
        kind: str,
        config: ml_collections.ConfigDict,
        depends: tuple[str, ...],
        *,
        evaluation: Mapping[str, Any] | None = None,
        selection: Mapping[str, str] | None = None,
        fold: int | None = None,
        **about: Any,
    ) -> Trial:
        examples = self._count(config)[0]
        steps = config_lib.steps_of(
            config.train_for, key="train_for", batch_size=config.batch_size, examples=examples
        )
        resolved = config_lib.to_dict(config)
        identity = {
            "kind": kind,
            "config": without_free(resolved),
            "evaluation": without_free(evaluation) if evaluation else None,
            "selection": selection,
            "data": self._fingerprint,
            "depends": list(depends),
        }
        return Trial(
            key=config_lib.digest(identity)[:16],
            name=name,
            kind=kind,
            fold=fold,
            depends=depends,
            steps=steps,
            config=resolved,
            evaluation=evaluation,
            selection=selection,
            **about,
        )


def without_free(config: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of the keys that change results."""
    return {key: value for key, value in config_lib.flatten(config) if key not in config_lib.FREE}


def scaled(duration: str, fraction: float) -> str:
    """'800 steps' at 0.25 -> '200 steps'; epochs and the rest keep their fractions."""
    match = _DURATION.match(str(duration))
    if not match or fraction == 1:
        return str(duration)
    value = float(match[1]) * fraction
    if match[2].strip().startswith("step"):
        return f"{max(round(value), 1)} steps"
    return f"{value:.6g} {match[2].strip()}"
