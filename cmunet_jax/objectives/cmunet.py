"""CM-UNet pre-training: masked reconstruction and contrast of two views (arXiv 2507.17779, II-B).

    view A ─ mask ─ encoder ─┬─ pixel decoder ── reconstruction of the masked patches
                             └─ feature decoder ─ projector ─ predictor ─┐
    view B ──── momentum encoder ─ adapter ─ momentum projector ─────────┴─ InfoNCE

The momentum (target) branch receives no gradient. It runs in `prepare`, over the whole global
batch, and its projections are the keys of InfoNCE; so a microbatch of accumulated gradients is
compared with the same keys as in one pass.

Where the released code is questionable (method.md, section 7, rows 7 to 9) each row is an option:

  mask_per_sample         True: each image is masked by its own patches. False: by those of the
                          batch's first image, while the loss looks at each image's own.
  reconstruction_target   what pixels are standardised over: 'patch', or 'row' as released.
  adapter                 how the target bottleneck becomes a map for the projector:
    'fresh'    a random 1×1 convolution drawn at every step, as released;
    'fixed'    one random 1×1 convolution, drawn at initialisation, never changed;
    'learned'  a trained one. Keys carry no gradient, so it learns elsewhere: applied to the online
               bottleneck it regresses the feature decoder's map, the input that the projector is
               trained on. Both sides of that regression are cut off: it trains the adapter alone.
    'ema'      the momentum average of the learned one makes the keys.
  Random adapters flatten channel-first, as released; trained ones keep pixels in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cmunet_jax import losses
from cmunet_jax.models import initialise
from cmunet_jax.models.heads import Projector, adapt, init_adapter
from cmunet_jax.models.unet import LEVELS, Decoder, Encoder, check_size
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Out, State, Transfer, Tree, Variables
from tfds_angio.errors import UserError

ADAPTERS = ("fresh", "fixed", "ema", "learned")
MOMENTUM_NETWORKS = ("encoder", "projector")


def preset_options(name: str) -> dict[str, Any]:
    """Options of preset 'paper' or 'fixed', for `config.objective`; UserError for other names."""
    common = {"temperature": 0.07, "momentum": 0.996}
    return base.preset(
        {
            "paper": {
                **common,
                "mask_per_sample": False,
                "adapter": "fresh",
                "reconstruction_target": "row",
            },
            "fixed": {
                **common,
                "mask_per_sample": True,
                "adapter": "fixed",
                "reconstruction_target": "patch",
            },
        },
        name,
    )


@dataclasses.dataclass(frozen=True)
class CMUNet(base.AnyBatch):
    """The CM-UNet objective; see the module for the meaning of the options.

    Attributes:
      width: of the U-Net, 64 in the paper; projections have 4·width features.
      dtype: of the computation; parameters, losses and contrastive logits are float32.
      up: 'transposed' or 'bilinear'.
      fast: forms of the layers that XLA compiles well.
      remat: what is computed again for the gradient: a key of `models.unet.REMAT`.
      mask_per_sample, adapter, reconstruction_target: rows 7, 8 and 9 of method.md, section 7.
      temperature: τ of InfoNCE, whose value is multiplied by 2τ.
      momentum: of the target's exponential moving average, constant.
    """

    width: int = 64
    dtype: str = "float32"
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"
    mask_per_sample: bool = True
    adapter: str = "fixed"
    reconstruction_target: str = "patch"
    temperature: float = 0.07
    momentum: float = 0.996

    views = ("online_target",)
    transfer = Transfer(
        {"encoder": "encoder", "pixel_decoder": "decoder"}, reinit=("decoder/head",)
    )

    def __post_init__(self):
        """Refuses options that do not exist."""
        base.check_choice("adapter", self.adapter, ADAPTERS)
        base.check_choice("reconstruction_target", self.reconstruction_target, losses.TARGETS)
        for name in ("temperature", "momentum"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"config.objective.{name}={getattr(self, name)} must lie in (0, 1]")

    @property
    def _trains_adapter(self) -> bool:
        return self.adapter in ("learned", "ema")

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.width, jnp.dtype(self.dtype), self.fast, self.remat)

    @property
    def _decoder(self) -> Decoder:
        return Decoder(self.width, 2, jnp.dtype(self.dtype), self.up, self.fast, self.remat)

    @property
    def _projector(self) -> Projector:
        return Projector(24 * self.width, 4 * self.width, jnp.dtype(self.dtype))

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for views [H, W, 1]; the projector is bound to that size.

        Raises:
          UserError: unless 16 divides H and W.
        """
        height, width = image_shape[:2]
        check_size(height, width)
        network_key, adapter_key = jax.random.split(key)
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        features = jax.eval_shape(
            lambda k, x: self._encoder.init_with_output(k, x, train=True)[0], key, image
        )
        flat = jax.ShapeDtypeStruct((1, height * width), jnp.float32)
        projection = jax.ShapeDtypeStruct((1, 4 * self.width), jnp.float32)
        shapes = {
            "encoder": initialise.shapes_of(self._encoder, image),
            "pixel_decoder": initialise.shapes_of(self._decoder, *features),
            "feature_decoder": initialise.shapes_of(self._decoder, *features),
            "projector": initialise.shapes_of(self._projector, flat),
            "predictor": initialise.shapes_of(self._projector, projection),
        }
        made = initialise.draw(network_key, shapes)
        params = {name: v["params"] for name, v in made.items()}
        batch_stats = {name: v["batch_stats"] for name, v in made.items()}
        extra: dict[str, Any] = {}
        if self._trains_adapter:
            params["adapter"] = init_adapter(adapter_key, self.width << LEVELS)
        elif self.adapter == "fixed":
            extra["adapter"] = init_adapter(adapter_key, self.width << LEVELS)
        extra["target"] = base.copy({name: params[name] for name in self._followers})
        extra["target_batch_stats"] = base.copy(
            {name: batch_stats[name] for name in MOMENTUM_NETWORKS}
        )
        return Variables(params=params, batch_stats=batch_stats, extra=extra)

    @property
    def _followers(self) -> tuple[str, ...]:
        """The parts whose parameters the target branch follows."""
        return (*MOMENTUM_NETWORKS, "adapter") if self.adapter == "ema" else MOMENTUM_NETWORKS

    def prepare(
        self, variables: Variables, views: Mapping[str, Array], key: Array, *, train: bool
    ) -> tuple[dict[str, Array], State]:
        """Runs the momentum branch on view B of the whole batch.

        Args:
          variables: of the objective.
          views: `view_b` [B, H, W, 1] and `patches` bool [B, H/16, W/16].
          key: draws the 'fresh' adapter.
          train: normalise by the batch's statistics and record them in `extra`.

        Returns:
          The context (`keys` float32 [B, 4·width], not normalised; `position` int32 [B], the row of
          an example in `keys`; `input_patches`, where all images share a mask) and the new state.
        """
        variables = lax.stop_gradient(variables)
        target, stats = variables.extra["target"], variables.extra["target_batch_stats"]
        (bottleneck, _), encoder_stats = base.run(
            self._encoder, target["encoder"], stats["encoder"], views["view_b"], train=train
        )
        flat = adapt(self._target_adapter(variables, key), bottleneck, spatial=self._trains_adapter)
        projection, projector_stats = base.run(
            self._projector, target["projector"], stats["projector"], flat, train=train
        )
        batch = projection.shape[0]
        context = {"keys": projection, "position": jnp.arange(batch, dtype=jnp.int32)}
        if not self.mask_per_sample:
            patches = views["patches"]
            context["input_patches"] = jnp.broadcast_to(patches[:1], patches.shape)
        new_stats = {"encoder": encoder_stats, "projector": projector_stats}
        extra = {**variables.extra, "target_batch_stats": new_stats}
        return lax.stop_gradient((context, {"batch_stats": variables.batch_stats, "extra": extra}))

    def _target_adapter(self, variables: Variables, key: Array) -> Tree:
        if self.adapter == "fresh":
            return init_adapter(key, self.width << LEVELS)
        if self.adapter == "fixed":
            return variables.extra["adapter"]
        return (variables.params if self.adapter == "learned" else variables.extra["target"])[
            "adapter"
        ]

    def loss(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
        *,
        train: bool,
    ) -> tuple[Array, Out]:
        """L_rec + L_con of the online branch on masked view A.

        Args:
          params: of the objective.
          state: of the objective; `extra` passes through.
          views: `view_a` [B, H, W, 1] and `patches` bool [B, H/16, W/16], True = masked.
          context: the rows of `prepare`'s context, and all its keys.
          key: unused.
          train: normalise by the batch's statistics and record them.
        """
        online, stats = self.online(params, state["batch_stats"], views, context, train=train)
        image = views["view_a"][..., 0]
        target, _, _ = losses.standardise(image, over=self.reconstruction_target)
        reconstruction = losses.masked_mse(online["pixels"], target, views["patches"])
        nce, accuracy = losses.info_nce(
            online["queries"],
            lax.stop_gradient(context["keys"]),
            context["position"],
            temperature=self.temperature,
        )
        contrast = 2 * self.temperature * nce
        total = reconstruction + contrast
        metrics = base.means(
            loss_reconstruction=reconstruction,
            loss_contrast=contrast,
            contrast_accuracy=accuracy,
            key_spread=losses.spread(context["keys"]),
        )
        if self._trains_adapter:
            made = adapt(params["adapter"], lax.stop_gradient(online["bottleneck"]), spatial=True)
            regression = losses.mse(made, lax.stop_gradient(online["map"]))
            total = total + regression
            metrics |= base.means(loss_adapter=regression)
        return total, Out({"batch_stats": stats, "extra": state["extra"]}, metrics)

    def online(
        self,
        params: Tree,
        stats: Tree,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        *,
        train: bool,
    ) -> tuple[dict[str, Array], Tree]:
        """The online branch: its outputs by name, and the new running statistics."""
        new = {}

        def run(name, network, *inputs):
            y, new[name] = base.run(network, params[name], stats[name], *inputs, train=train)
            return y

        masked = base.mask(views["view_a"], self._input_patches(views, context))
        bottleneck, skips = run("encoder", self._encoder, masked)
        pixels = run("pixel_decoder", self._decoder, bottleneck, skips)
        features = run("feature_decoder", self._decoder, bottleneck, skips)
        flat = features.mean(-1).reshape(features.shape[0], -1)
        projection = run("projector", self._projector, flat)
        queries = run("predictor", self._projector, projection)
        outputs = {
            "bottleneck": bottleneck,
            "pixels": pixels[..., 1],
            "map": flat,
            "projection": projection,
            "queries": queries,
        }
        return outputs, new

    def _input_patches(self, views: Mapping[str, Array], context: Mapping[str, Array]) -> Array:
        return views["patches"] if self.mask_per_sample else context["input_patches"]

    def post_update(self, params: Tree, extra: Tree, step: Array) -> Tree:
        """Moves the target's parameters towards the online ones: EMA with constant momentum."""
        followed = {name: params[name] for name in self._followers}
        return {**extra, "target": base.follow(extra["target"], followed, self.momentum)}

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """View A, the masked view, the reconstruction pasted into it, and the error where masked.

        Grey values share one window; the error is absolute, white at half that window.
        """
        online, _ = self.online(params, state["batch_stats"], views, context, train=False)
        image, patches = views["view_a"], self._input_patches(views, context)
        _, mean, scale = losses.standardise(image[..., 0], over=self.reconstruction_target)
        made = (online["pixels"] * scale + mean)[..., None]
        return base.inpainted(image, made, patches)
