"""PyTorch's ways to run a step or a forward pass, as tasks to time. Needs the extra `bench`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmunet_jax.benchmark.timing import Task

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run PyTorch; all compute in the same dtype.

    Attributes:
      name: for the table.
      channels_last: the memory format of weights and images.
      compiled: by `torch.compile`.
      tuned: with what costs nothing to ask for: fused optimiser, cuDNN's search, TF32 products.
    """

    name: str
    channels_last: bool = False
    compiled: bool = False
    tuned: bool = False


VARIANTS = (
    Variant("torch as released"),  # NCHW, eager
    Variant("torch channels_last", channels_last=True, tuned=True),
    Variant("torch compiled", channels_last=True, compiled=True, tuned=True),
)


def device_for(platform: str) -> str | None:
    """PyTorch's device beside JAX's platform 'cpu' or 'gpu'; None where it has none there."""
    if platform == "cpu":
        return "cpu"
    return "cuda" if platform == "gpu" and torch.cuda.is_available() else None


def parameters(module: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def put_weights(module: nn.Module, state_dict: Arrays) -> None:
    """Puts converted weights in; the momentum branch of CM-UNet, which has no names, follows.

    Raises:
      ValueError: if a name is not the module's.
    """
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state_dict.items()}
    unexpected = module.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"the PyTorch network has no tensors {unexpected[:5]}")
    if hasattr(module, "follow"):
        module.follow()


def inputs(views: Arrays, device: str) -> dict[str, Tensor]:
    """Views [B, H, W, 1], masks and patches as PyTorch takes them: NCHW, int64, bool."""
    made = {}
    for name, value in views.items():
        tensor = torch.from_numpy(np.array(value))
        if tensor.ndim == 4:
            tensor = tensor.movedim(-1, 1)
        made[name] = tensor.long() if name == "mask" else tensor
    return {name: tensor.contiguous().to(device) for name, tensor in made.items()}


def _formatted(
    module: nn.Module, views: Mapping[str, Tensor], variant: Variant, device: str
) -> tuple[Any, list[Tensor]]:
    """A copy of the module and the views, in the variant's memory format, on the device."""
    module = copy.deepcopy(module).to(device)
    tensors = list(views.values())
    if variant.channels_last:
        module = module.to(memory_format=torch.channels_last)
        last = torch.channels_last
        tensors = [x.contiguous(memory_format=last) if x.ndim == 4 else x for x in tensors]
    return module, tensors


@contextlib.contextmanager
def _settings(variant: Variant, device: str) -> Iterator[None]:
    """PyTorch's global settings, of this variant while it runs: tasks take turns."""
    if device != "cuda":
        yield
        return
    search, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = variant.tuned
    torch.set_float32_matmul_precision("high" if variant.tuned else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = search
        torch.set_float32_matmul_precision(precision)


def _wait(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def training_task(
    module: nn.Module, views: Mapping[str, Tensor], variant: Variant, *, device: str, dtype: str,
    optimiser: str, **options: Any,
) -> Task:  # fmt: skip
    """Forward, backward, optimiser and what follows it, on the same views again and again.

    Args:
      module: of `torch_unet`, whose forward is the loss; it is copied.
      views: its arguments, in order.
      variant: how to run it.
      device: 'cpu' or 'cuda'.
      dtype: 'float32', or 'bfloat16' for autocast to it.
      optimiser: 'Adam' or 'AdamW'.
      **options: of the optimiser.
    """
    module, tensors = _formatted(module.train(), views, variant, device)
    trained = [p for p in module.parameters() if p.requires_grad]
    step = getattr(torch.optim, optimiser)(trained, fused=variant.tuned or None, **options)
    loss_of = torch.compile(module) if variant.compiled else module

    def call() -> None:
        with _settings(variant, device):
            step.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = loss_of(*tensors)
            loss.backward()
            step.step()
            module.after_step()

    return Task(call, _wait(device))


def inference_task(
    module: nn.Module, image: Tensor, variant: Variant, *, device: str, dtype: str
) -> Task:
    """The forward pass in evaluation mode without gradients; as `training_task` otherwise."""
    module, (image,) = _formatted(module.eval(), {"image": image}, variant, device)
    run = torch.compile(module) if variant.compiled else module

    def call() -> None:
        with (
            _settings(variant, device),
            torch.inference_mode(),
            torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            run(image)

    return Task(call, _wait(device))


def forget_peak(device: str) -> None:
    """Starts the device's count of its most memory anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def device_peak(device: str) -> float | None:
    """Most bytes that PyTorch held on the device since then; None on a CPU, which has no count."""
    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else None


def set_threads(count: int) -> None:
    """Threads of one operation; 0 leaves PyTorch's choice."""
    if count:
        torch.set_num_threads(count)
