"""The same graph, batch, size and precision in PyTorch, alternating with ours."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax

from cmunet_jax.benchmark import machine, memory
from cmunet_jax.benchmark.cost import Cost
from cmunet_jax.benchmark.inference import MakeForward, forward_task, images_of
from cmunet_jax.benchmark.memory import Peak
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.subject import Training, core_step, views_task
from cmunet_jax.benchmark.timing import Effort, Task, alternate, ratios, spread
from cmunet_jax.interop import torch_names

_RATE = 1e-4  # of both optimisers: small, so that the weights stay ordinary numbers


def absent(platform: str) -> str:
    """Why there is no comparison, as one line, or ''."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed, so nothing is compared with it: pip install '.[bench]'"
    if _steps().device_for(platform) is None:
        return f"PyTorch sees no {platform} device here, so nothing is compared with it."
    return ""


def _steps() -> ModuleType:
    return importlib.import_module("cmunet_jax.benchmark.torch_steps")


def _networks() -> ModuleType:
    return importlib.import_module("cmunet_jax.benchmark.torch_unet")


def _twin() -> ModuleType:
    return importlib.import_module("cmunet_jax.interop.pytorch.unet")


@dataclasses.dataclass(frozen=True)
class Contest:
    """One comparison: ours, and PyTorch's module with what it is run on."""

    case: str
    images: int
    ours: Task
    cost: Cost
    module: Any
    inputs: Mapping[str, Any]
    optimiser: str = ""  # '': the forward pass alone
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def finetune_contest(training: Training) -> Contest:
    """Forward, backward and Adam of the U-Net with cross-entropy + soft Dice."""
    stepping, work, views = _core(training, optax.adam(_RATE))
    module = _networks().Finetune(training.config.model.width)
    _put(module, training, _twin().unet_entries("unet."))
    return _training_contest("finetune", training, stepping.task, work, module, views, "Adam")


def cmunet_contest(training: Training) -> Contest:
    """The CM-UNet step: encoder, two decoders, projector, predictor, momentum branch, AdamW."""
    config = training.config
    stepping, work, views = _core(training, optax.adamw(_RATE, weight_decay=0.05))
    module = _networks().CMUNet(
        config.model.width,
        views["view_a"].shape[1],
        temperature=config.objective.temperature,
        momentum=config.objective.momentum,
    )
    _put(module, training, _networks().cmunet_entries())
    ordered = {name: views[name] for name in ("view_a", "view_b", "patches")}
    return _training_contest(
        "cmunet", training, stepping.task, work, module, ordered, "AdamW", weight_decay=0.05
    )


def inference_contest(training: Training, make_forward: MakeForward) -> Contest:
    """The forward pass of the U-Net in evaluation mode."""
    images = images_of(training)
    ours, work = forward_task(training, images, make_forward)
    module = _twin().UNet(training.config.model.width)
    _put(module, training, _twin().unet_entries())
    inputs = _steps().inputs({"image": images}, _device())
    return Contest("inference", len(images), ours, work, module, inputs)


def _core(training: Training, tx: optax.GradientTransformation) -> tuple[Any, Cost, Any]:
    with training.batches() as batches:
        make, _ = views_task(training, next(batches))
        views = make()
    stepping, work = core_step(training, views, tx)
    return stepping, work, jax.tree.map(np.asarray, views)


def _training_contest(
    case: str, training: Training, ours: Task, work: Cost, module: Any, views: Any,
    optimiser: str, **options: float,
) -> Contest:  # fmt: skip
    return Contest(
        case,
        training.config.batch_size,
        ours,
        work,
        module,
        _steps().inputs(views, _device()),
        optimiser,
        {"lr": _RATE, **options},
    )


def _device() -> str:
    return _steps().device_for(jax.default_backend())


def _put(module: Any, training: Training, entries: Any) -> None:
    """Gives PyTorch our weights; refuses to compare networks of different size."""
    state = training.state
    _steps().put_weights(module, torch_names.to_torch(state.params, state.batch_stats, entries))
    ours = sum(x.size for x in jax.tree.leaves(state.params))
    theirs = _steps().parameters(module)
    if ours != theirs:
        raise ValueError(f"ours has {ours:,} parameters, PyTorch's {theirs:,}")


def contest_rows(
    contest: Contest, training: Training, *, compile_too: bool, effort: Effort
) -> Iterator[Row]:
    """Times all in rounds; a variant that does not run is a row with its reason."""
    case, dtype = f"torch_{contest.case}", training.config.model.dtype
    _steps().set_threads(machine.usable_cores())
    rivals, peaks = {}, {}
    for variant in _steps().VARIANTS:
        if variant.compiled and not compile_too:
            continue
        try:
            rivals[variant.name], peaks[variant.name] = _ready(contest, variant, dtype)
        except Exception as error:  # Whatever torch.compile meets on this machine.
            reason = " ".join(str(error).split())[:300]
            what = f"{case}: {variant.name}"
            yield Row(case, what, error=f"{type(error).__name__}: {reason}")
    samples = alternate({"ours": contest.ours, **rivals}, effort)
    ours, images = samples.pop("ours"), contest.images
    yield Row(case, f"{case}: ours", ours, images=images, cost=contest.cost)
    for name, taken in samples.items():
        yield Row(case, f"{case}: {name}", taken, images=images, peak=peaks[name])
    fastest = min(samples, key=lambda name: spread(samples[name]).median, default="")
    for name, taken in samples.items():
        best = " (its best)" if name == fastest else ""
        yield Row(case, f"{case}: ours against {name}{best}", ratios(ours, taken), unit="×")


def _ready(contest: Contest, variant: Any, dtype: str) -> tuple[Task, Peak]:
    """A task that has run once, and the most memory that it took."""
    steps = _steps()
    steps.forget_peak(_device())
    with memory.watch() as peak:
        task = _task(contest, variant, dtype)
        task.seconds()
    return task, Peak(peak.process, steps.device_peak(_device()))


def _task(contest: Contest, variant: Any, dtype: str) -> Task:
    steps, common = _steps(), {"device": _device(), "dtype": dtype}
    if not contest.optimiser:
        return steps.inference_task(contest.module, contest.inputs["image"], variant, **common)
    return steps.training_task(
        contest.module, contest.inputs, variant, optimiser=contest.optimiser,
        **contest.options, **common,
    )  # fmt: skip
