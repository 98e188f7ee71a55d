"""The networks in PyTorch are ours: same parameters, outputs and losses. Skips without it."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.interop import torch_names
from cmunet_jax.objectives.cmunet import CMUNet
from cmunet_jax.objectives.scratch import Scratch
from tests.objectives import tiny

torch = pytest.importorskip("torch", reason="the extra `bench` is not installed")
from cmunet_jax.benchmark import torch_steps, torch_unet  # noqa: E402
from cmunet_jax.interop.pytorch import unet  # noqa: E402

pytestmark = pytest.mark.slow
WIDTH, SIZE = 4, 48


def _finetune():
    objective, views = Scratch(width=WIDTH), tiny.supervised(size=SIZE)
    variables = jax.jit(objective.init, static_argnums=1)(jax.random.key(0), (SIZE, SIZE, 1))
    module = torch_unet.Finetune(WIDTH)
    entries = unet.unet_entries("unet.")
    state_dict = torch_names.to_torch(variables.params, variables.batch_stats, entries)
    torch_steps.put_weights(module, state_dict)
    return objective, variables, views, module


def _count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def test_same_parameters_and_same_logits():
    objective, variables, views, module = _finetune()
    assert torch_steps.parameters(module) == _count(variables.params)
    weights = {"params": variables.params, "batch_stats": variables.batch_stats}
    ours = objective.network.apply(weights, views["image"], train=False)
    with torch.no_grad():
        theirs = module.unet.eval()(torch_steps.inputs(views, "cpu")["image"])
    np.testing.assert_allclose(theirs.movedim(1, -1), ours, atol=1e-4)


def test_same_loss_of_fine_tuning():
    objective, variables, views, module = _finetune()
    ours, _ = tiny.full_loss(objective, variables, views)
    theirs = module.train()(**torch_steps.inputs(views, "cpu"))
    assert theirs.item() == pytest.approx(float(ours), abs=1e-5)


def test_same_loss_of_cmunet_and_the_same_momentum_branch():
    objective, views = CMUNet(width=WIDTH), tiny.online_target(size=SIZE)
    variables = jax.jit(objective.init, static_argnums=1)(jax.random.key(0), (SIZE, SIZE, 1))
    module = torch_unet.CMUNet(
        WIDTH, SIZE, temperature=objective.temperature, momentum=objective.momentum
    )
    entries = torch_unet.cmunet_entries()
    state_dict = torch_names.to_torch(variables.params, variables.batch_stats, entries)
    extra = {"adapter": variables.extra["adapter"]}
    state_dict |= torch_names.to_torch(extra, {}, torch_names.adapter_entries())
    torch_steps.put_weights(module, state_dict)
    assert torch_steps.parameters(module) == _count(variables.params)

    ours, _ = tiny.full_loss(objective, variables, views)
    tensors = torch_steps.inputs(views, "cpu")
    ordered = [tensors[name] for name in ("view_a", "view_b", "patches")]
    theirs = module.train()(*ordered)
    assert theirs.item() == pytest.approx(float(ours), abs=1e-4)
    theirs.backward()
    assert all(p.grad is None for p in module.target_encoder.parameters())
    assert all(p.grad is not None for p in module.predictor.parameters())

    before = [p.clone() for p in module.target_encoder.parameters()]
    with torch.no_grad():
        for p in module.encoder.parameters():
            p.add_(1.0)
    module.after_step()
    for old, new in zip(before, module.target_encoder.parameters(), strict=True):
        np.testing.assert_allclose(new - old, 1 - objective.momentum, atol=1e-5)


def test_a_task_trains_a_copy():
    _, _, views, module = _finetune()
    before = [p.clone() for p in module.parameters()]
    inputs = torch_steps.inputs(views, "cpu")
    variant = torch_steps.VARIANTS[1]
    task = torch_steps.training_task(
        module, inputs, variant, device="cpu", dtype="bfloat16", optimiser="Adam", lr=1e-3
    )
    assert task.seconds(2) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    forward = torch_steps.inference_task(
        module.unet, inputs["image"], variant, device="cpu", dtype="float32"
    )
    assert forward.seconds() > 0


def _global_settings():
    return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()


def test_each_variant_runs_with_its_own_settings_whatever_was_made_after_it(monkeypatch):
    """As on a GPU, without one: nothing moves, and no kernel is asked for."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            seen.append(_global_settings())
            return (self.weight * image).sum()

        def after_step(self):
            seen.append(_global_settings())

    before, image = _global_settings(), torch.ones(1, 1, 2, 2)
    common = dict(device="cuda", dtype="float32")
    released, tuned = torch_steps.VARIANTS[:2]
    tasks = [
        torch_steps.training_task(
            Spy(), {"image": image}, variant, optimiser="SGD", lr=0.1, **common
        )
        for variant in (released, dataclasses.replace(tuned, tuned=False), released)
    ]
    tasks += [
        torch_steps.inference_task(Spy(), image, variant, **common) for variant in (released, tuned)
    ]
    assert _global_settings() == before
    for task in tasks:
        task.seconds()
        assert _global_settings() == before
    assert seen == [(False, "highest")] * 7 + [(True, "high")]


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no_such"):
        torch_steps.put_weights(unet.UNet(2), {"no_such": jnp.zeros(1)})
