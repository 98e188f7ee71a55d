"""The pre-training graph of CM-UNet, with the released mask and with one mask a sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.torch_names import Entry
from cmunet_jax.objectives.base import Variables
from cmunet_jax.objectives.cmunet import CMUNet
from tests.golden.case import Case, Check, formula_weights, relative, width_of

PATTERN = "*_cmunet_w*"
TOLERANCE = 1e-4
MODES = {"released": False, "per_sample_mask": True}


def online_entries() -> list[Entry]:
    """The trained networks under their PyTorch names."""
    return [
        *torch_names.encoder_entries("backbone.", "encoder"),
        *torch_names.decoder_entries("pixel_decoder.", "pixel_decoder"),
        *torch_names.decoder_entries("feature_decoder.", "feature_decoder"),
        *torch_names.projector_entries("projector.", "projector"),
        *torch_names.projector_entries("head.predictor.", "predictor"),
    ]


def target_entries() -> list[Entry]:
    """The momentum networks under their PyTorch names."""
    return [
        *torch_names.encoder_entries("target_backbone.", "encoder"),
        *torch_names.projector_entries("target_projector.", "projector"),
    ]


def formula_variables(objective: CMUNet, shape: tuple[int, int, int], seed: int) -> Variables:
    """Variables with formula weights, adapter included (it takes the place of the 'fixed' one)."""
    v = jax.eval_shape(lambda k: objective.init(k, shape), jax.random.key(0))
    params, stats = formula_weights(online_entries(), v.params, v.batch_stats, seed)
    target, target_stats = formula_weights(
        target_entries(), v.extra["target"], v.extra["target_batch_stats"], seed
    )
    adapter, _ = formula_weights(
        torch_names.adapter_entries("adapter.", "adapter"),
        {"adapter": v.extra["adapter"]},
        {},
        seed,
    )
    extra = {**adapter, "target": target, "target_batch_stats": target_stats}
    return jax.tree.map(jnp.asarray, Variables(params=params, batch_stats=stats, extra=extra))


def check(case: Case, stem: str) -> list[Check]:
    """Compares both modes of one case; everything in training mode."""
    return [c for mode in MODES for c in _check_mode(case, stem, mode)]


def _check_mode(case: Case, stem: str, mode: str) -> list[Check]:
    objective = CMUNet(
        width=width_of(stem),
        mask_per_sample=MODES[mode],
        adapter="fixed",
        reconstruction_target="row",
    )
    views = {
        "view_a": jnp.asarray(case["img"])[..., None],
        "view_b": jnp.asarray(case["img_t"])[..., None],
        "patches": jnp.asarray(case["mask_patches"]).astype(bool),
    }
    variables = formula_variables(objective, views["view_a"].shape[1:], int(case["seed"]))

    @jax.jit
    def run(variables):
        key = jax.random.key(0)
        context, state = objective.prepare(variables, views, key, train=True)
        _, out = objective.loss(variables.params, state, views, context, key, train=True)
        online, _ = objective.online(
            variables.params, variables.batch_stats, views, context, train=True
        )
        return context["keys"], out.metrics, online

    keys, metrics, online = run(variables)
    pixels = np.asarray(online["pixels"], np.float64)
    ours = {
        "loss_ct": metrics["loss_contrast"][0],
        "loss_rc": metrics["loss_reconstruction"][0],
        "proj_s": online["projection"],
        "proj_t": keys,
        "pred_pixel_channel1_mean_std": np.array([pixels.mean(), pixels.std(ddof=1)]),
    }
    return [relative(f"{mode}/{k}", v, case[f"{mode}/{k}"], TOLERANCE) for k, v in ours.items()]
