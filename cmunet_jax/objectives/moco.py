"""MoCo v2 on the U-Net's encoder (He et al., CVPR 2020; Chen et al., arXiv 2003.04297).

    view q ─ encoder ────────── spatial mean ─ query ─┐
    view k ─ momentum encoder ─ spatial mean ─ key ───┴─ InfoNCE against a queue of earlier keys

A query's positive is the key of its own image; its negatives are the queue alone. The momentum
branch receives no gradient and runs in `prepare`. When the last microbatch of a step has been
compared with the queue, the keys of the whole batch replace its oldest ones; so with accumulated
gradients, too, all queries of a step see one queue. There is no projection head, as released.

How keys are normalised is what MoCo's shuffling is about. A batch-normalised query and key that
share their batch also share its statistics, a signature by which the positive is told from the
queue without looking at the image. The original normalises on each GPU by itself and sends keys to
other GPUs than their queries. Here the batch is the global one, where another order alone changes
nothing, so its meaning is spelled out, by numbers that do not depend on the devices present:

  bn_group    the number of images that are normalised together (the images of one GPU); 0 for the
              whole pass. The row r of the batch belongs to group r mod (batch / bn_group), in one
              pass and in several.
  key_norm    how the momentum encoder normalises:
    'shuffled'  by groups of a permutation of the batch, drawn from the seed at every step;
    'batch'     by the groups of the queries, that is without shuffling;
    'running'   by the momentum encoder's running statistics as they were before the step, which
                another pass records (a quarter more work). A key is a function of its image alone.

Preset `paper` shuffles groups of 32, MoCo's 256 images on 8 GPUs. Preset `fixed` takes 'running',
which removes the signature instead of hiding it and sends no images between devices. Statistics
that follow the query's encoder (EMAN; Cai et al., CVPR 2021) would cost nothing, but were found to
run ahead of the slow weights that they normalise: keys became alike, and told by their age.

  queue       the number of keys remembered. The original's 65,536 is a twentieth of ImageNet, but
              some forty times the angiograms here: each image then meets forty older keys of its
              own among its negatives. Preset `fixed` takes 1,024, less than an epoch.
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
from cmunet_jax.models.unet import LEVELS, Encoder, check_size
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Out, State, Transfer, Tree, Variables
from tfds_angio.errors import UserError

KEY_NORMS = ("shuffled", "batch", "running")
_GREEN, _RED = (0.1, 0.8, 0.2), (0.9, 0.2, 0.1)
_FRAME = 2  # pixels


def preset_options(name: str) -> dict[str, Any]:
    """Options of preset 'paper' or 'fixed', for `config.objective`; UserError for other names."""
    common = {"temperature": 0.07, "momentum": 0.999}
    return base.preset(
        {
            "paper": {**common, "queue": 65_536, "key_norm": "shuffled", "bn_group": 32},
            "fixed": {**common, "queue": 1024, "key_norm": "running", "bn_group": 0},
        },
        name,
    )


@dataclasses.dataclass(frozen=True)
class MoCo(base.AnyBatch):
    """The MoCo v2 objective; see the module for the meaning of the options.

    Attributes:
      width: of the U-Net, 64 in the paper; queries and keys have 16·width features.
      dtype: of the computation; parameters, keys, queue and logits are float32.
      up: unused, since there is no decoder; all methods share a `model` config.
      fast: forms of the layers that XLA compiles well.
      remat: what is computed again for the gradient: a key of `models.unet.REMAT`.
      queue: keys remembered, a multiple of the batch.
      key_norm, bn_group: see the module.
      temperature: τ of InfoNCE.
      momentum: of the key encoder's exponential moving average, constant.
    """

    width: int = 64
    dtype: str = "float32"
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"
    queue: int = 1024
    key_norm: str = "running"
    bn_group: int = 0
    temperature: float = 0.07
    momentum: float = 0.999

    views = ("two_views",)
    transfer = Transfer({"encoder": "encoder"})

    def __post_init__(self):
        """Refuses options that do not exist."""
        base.check_choice("key_norm", self.key_norm, KEY_NORMS)
        for name in ("temperature", "momentum"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"config.objective.{name}={getattr(self, name)} must lie in (0, 1]")
        if self.queue < 1:
            raise UserError(f"config.objective.queue={self.queue} must be at least one batch")
        if self.bn_group < 0:
            raise UserError(f"config.objective.bn_group={self.bn_group} must be 0 (all) or more")
        if self.key_norm == "shuffled" and not self.bn_group:
            raise UserError(
                "config.objective.key_norm='shuffled' needs groups to shuffle between: set "
                "config.objective.bn_group, or key_norm='running'"
            )

    def check_batch(self, batch_size: int, *, accumulation: int) -> None:
        """Raises UserError unless batches fit the queue, groups a pass, and shuffling can mix."""
        if self.queue % batch_size:
            near = max(self.queue // batch_size, 1) * batch_size
            raise UserError(
                f"config.objective.queue={self.queue} is not a multiple of "
                f"config.batch_size={batch_size}, the keys that it takes at a time. Use {near}."
            )
        rows = batch_size // accumulation
        if self.bn_group and rows % self.bn_group:
            raise UserError(
                f"config.objective.bn_group={self.bn_group} does not divide the {rows} images of a "
                "pass (config.batch_size / config.accumulation). Use a divisor of it."
            )
        if self.key_norm == "shuffled" and self.bn_group == batch_size > 1:
            raise UserError(
                f"config.objective.key_norm='shuffled' changes nothing in one group of all "
                f"{batch_size} images. Use a smaller bn_group, or key_norm='running'."
            )

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.width, jnp.dtype(self.dtype), self.fast, self.remat)

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for views [H, W, 1]; the queue starts with random directions.

        Raises:
          UserError: unless 16 divides H and W.
        """
        check_size(*image_shape[:2])
        network_key, queue_key = jax.random.split(key)
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        made = initialise.draw(network_key, {"encoder": initialise.shapes_of(self._encoder, image)})
        params = {"encoder": made["encoder"]["params"]}
        batch_stats = {"encoder": made["encoder"]["batch_stats"]}
        directions = jax.random.normal(queue_key, (self.queue, self.width << LEVELS), jnp.float32)
        extra = {
            "target": base.copy(params),
            "target_batch_stats": base.copy(batch_stats),
            "next_batch_stats": base.copy(batch_stats),
            "queue": losses.l2_normalise(directions),
            "pointer": jnp.zeros((), jnp.int32),
        }
        return Variables(params=params, batch_stats=batch_stats, extra=extra)

    def arrange(self, views: Mapping[str, Array], key: Array) -> dict[str, Array]:
        """Shuffles the keys' images, where that is asked for.

        Returns:
          The views; `view_k` permuted, and `key_row` int32 [B], the row in which an example's own
          key will be found.
        """
        if self.key_norm != "shuffled":
            return dict(views)
        order = jax.random.permutation(key, len(views["view_k"]))
        return {
            **views,
            "view_k": views["view_k"][order],
            "key_row": jnp.argsort(order).astype(jnp.int32),
        }

    def prepare(
        self, variables: Variables, views: Mapping[str, Array], key: Array, *, train: bool
    ) -> tuple[dict[str, Array], State]:
        """Runs the momentum encoder on view k.

        Args:
          variables: of the objective.
          views: `view_k` [B, H, W, 1].
          key: unused.
          train: False normalises by running statistics whatever `key_norm` says.

        Returns:
          The context (`keys` float32 [B, 16·width], of length 1; `position` int32 [B], the row of
          an example in the batch) and the new state.
        """
        variables = lax.stop_gradient(variables)
        extra, target = variables.extra, variables.extra["target"]
        running, recorded = extra["target_batch_stats"], extra["next_batch_stats"]
        keys, recorded = self._features(target, recorded, views["view_k"], train=train)
        if train and self.key_norm == "running":
            keys, _ = self._features(target, running, views["view_k"], train=False)
        context = {
            "keys": losses.l2_normalise(keys),
            "position": jnp.arange(len(keys), dtype=jnp.int32),
        }
        extra = {**extra, "next_batch_stats": recorded}
        return lax.stop_gradient((context, {"batch_stats": variables.batch_stats, "extra": extra}))

    def _features(
        self, params: Tree, stats: Tree, image: Array, *, train: bool
    ) -> tuple[Array, Tree]:
        """Spatial means of bottlenecks, float32 [B, 16·width], and new running statistics.

        In training each group is normalised by itself; running statistics follow the groups' mean.
        """

        def encode(image: Array) -> tuple[Array, Tree]:
            (bottleneck, _), new = base.run(
                self._encoder, params["encoder"], stats["encoder"], image, train=train
            )
            wide = bottleneck.astype(jnp.promote_types(bottleneck.dtype, jnp.float32))
            return wide.mean((1, 2)), {"encoder": new}

        if not (train and self.bn_group):
            return encode(image)
        # Row r is in group r mod groups: microbatches, which are interleaved, hold whole groups.
        rows = image.reshape(self.bn_group, -1, *image.shape[1:])
        features, new = jax.vmap(encode, in_axes=1, out_axes=(1, 0))(rows)
        return features.reshape(len(image), -1), jax.tree.map(lambda x: x.mean(0), new)

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
        """InfoNCE of the queries of view q; in training the step's last pass fills the queue.

        Args:
          params: of the objective.
          state: of the objective.
          views: `view_q` [B, H, W, 1], and `key_row` int32 [B] where keys are shuffled.
          context: the rows of `prepare`'s context, and all its keys.
          key: unused.
          train: normalise by the batch's statistics and record them.
        """
        queries, stats = self._features(params, state["batch_stats"], views["view_q"], train=train)
        extra, keys = lax.stop_gradient((state["extra"], context["keys"]))
        rows = views["key_row"] if "key_row" in views else context["position"]
        own = keys[rows]
        nce, accuracy = losses.queue_nce(queries, own, extra["queue"], temperature=self.temperature)
        if train:
            last = context["position"].max() == len(keys) - 1
            after = self._end_step(extra, keys)
            extra = jax.tree.map(lambda a, b: jnp.where(last, a, b), after, extra)
        unit = losses.l2_normalise(queries)
        # Among the keys of its own batch a query cannot be told by normalisation or age.
        found = (unit @ keys.T).argmax(-1) == rows
        metrics = base.means(
            loss_contrast=nce,
            contrast_accuracy=accuracy,
            batch_accuracy=found.mean(dtype=nce.dtype),
            key_spread=losses.spread(keys),
            positive_cosine=(unit * own).sum(-1).mean(),
        )
        return nce, Out({"batch_stats": stats, "extra": extra}, metrics)

    def _end_step(self, extra: Tree, keys: Array) -> Tree:
        """`extra` after the last query of a step: keys enqueued, recorded statistics in use."""
        queue, pointer = enqueue(extra["queue"], extra["pointer"], keys)
        running = extra["next_batch_stats"]
        return {**extra, "queue": queue, "pointer": pointer, "target_batch_stats": running}

    def post_update(self, params: Tree, extra: Tree, step: Array) -> Tree:
        """Moves the key encoder's parameters towards the query's: EMA with constant momentum."""
        return {**extra, "target": base.follow(extra["target"], params, self.momentum)}

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """What is compared with what, and how alike the encoder finds it.

        Returns:
          `query` and `key`, the two views; `nearest`, the pictured key with the largest cosine to
          the query, framed green if it is the query's own, else red; `similarity`, the histogram of
          the query's cosines to the queue (0 left, 1 right) with a green line at its own key's
          cosine and red ones at those of the other pictured keys: all of them to the right of the
          queue means that keys are told by their age, not by their image.
        """
        queries, _ = self._features(params, state["batch_stats"], views["view_q"], train=False)
        unit = losses.l2_normalise(queries)
        cosines = unit @ context["keys"].T
        nearest = cosines.argmax(-1)
        right = nearest == jnp.arange(len(nearest))
        view_k = base.to_unit(views["view_k"])
        _, height, width, _ = views["view_q"].shape
        return {
            "query": base.to_unit(views["view_q"]),
            "key": view_k,
            "nearest": _frame(view_k[nearest], right),
            "similarity": _histogram(unit @ state["extra"]["queue"].T, cosines, (height, width)),
        }


def enqueue(queue: Array, pointer: Array, keys: Array) -> tuple[Array, Array]:
    """Replaces the oldest keys of a ring by new ones.

    Args:
      queue: float32 [K, D], rows of length 1.
      pointer: int32 scalar in [0, K), a multiple of B: where the oldest key is.
      keys: [B, D], any length; B divides K.

    Returns:
      The queue with the normalised keys at `pointer`, and the next pointer, modulo K.

    Raises:
      ValueError: if B does not divide K, since a block would not end with the queue.
    """
    size, count = len(queue), len(keys)
    if size % count:
        raise ValueError(f"a queue of {size} keys is not a multiple of the {count} that it takes")
    block = losses.l2_normalise(keys).astype(queue.dtype)
    queue = lax.dynamic_update_slice_in_dim(queue, block, pointer, axis=0)
    return queue, ((pointer + count) % size).astype(pointer.dtype)


def _frame(image: Array, good: Array) -> Array:
    """Images [B, H, W, 1] in [0, 1] in colour, framed green where `good` [B], else red."""
    _, height, width, _ = image.shape
    inside = jnp.zeros((height, width), bool).at[_FRAME:-_FRAME, _FRAME:-_FRAME].set(True)
    colour = jnp.where(good[:, None], jnp.asarray(_GREEN), jnp.asarray(_RED))
    return jnp.where(inside[..., None], image, colour[:, None, None])


def _histogram(negatives: Array, pictured: Array, side: tuple[int, int]) -> Array:
    """Histograms of cosines [B, K], with lines at `pictured` [B, B]: [B, H, W, 3]."""
    height, width = side
    column = lambda cosine: jnp.clip(cosine * width, 0, width - 1).astype(jnp.int32)  # noqa: E731
    counts = jax.vmap(lambda c: jnp.bincount(c, length=width))(column(negatives))
    level = counts / counts.max(-1, keepdims=True)
    above = (height - jnp.arange(height)) / height
    bars = jnp.where(above[:, None] <= level[:, None], 0.6, 0.0)[..., None]
    at = jax.nn.one_hot(column(pictured), width, dtype=bool)
    own = jnp.eye(len(pictured), dtype=bool)[..., None]
    line = lambda which: (at & which).any(1)[:, None, :, None]  # noqa: E731
    bars = jnp.where(line(~own), jnp.asarray(_RED), bars)
    return jnp.where(line(own), jnp.asarray(_GREEN), bars).astype(jnp.float32)
