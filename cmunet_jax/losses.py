"""Losses: pure functions of arrays, computed in float32 or wider whatever the inputs are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

PATCH = 16
"""Side of a mask patch in pixels."""
TARGETS = ("row", "patch")


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean softmax cross-entropy.

    Args:
      logits: [..., K].
      labels: int [...], in [0, K).

    Returns:
      A scalar, in nats.
    """
    log_p = jax.nn.log_softmax(_wide(logits))
    # A product with the one-hot labels: the gradient of indexing is a slow scatter on CPU.
    picked = (log_p * jax.nn.one_hot(labels, logits.shape[-1], dtype=log_p.dtype)).sum(-1)
    return -picked.mean()


def soft_dice(logits: Array, labels: Array, *, smooth: float = 1.0) -> Array:
    """One minus the soft Dice coefficient of class 1, per image, then averaged.

    Milletari et al., V-Net (2016), with p + g in the denominator. `smooth` is added to numerator
    and denominator: an image without artery costs 1 - smooth / (sum p + smooth).

    Args:
      logits: [B, H, W, 2].
      labels: int [B, H, W], 0 or 1.
      smooth: in pixels, > 0.

    Returns:
      A scalar in [0, 1].
    """
    p = jax.nn.softmax(_wide(logits))[..., 1]
    g = labels.astype(p.dtype)
    overlap, size = (p * g).sum((1, 2)), (p + g).sum((1, 2))
    return (1 - (2 * overlap + smooth) / (size + smooth)).mean()


def thresholded_dice(logits: Array, labels: Array, *, smooth: float = 1e-5) -> Array:
    """One minus the Dice coefficient of the argmax, over the pixels of the whole batch.

    The released training loss adds this term (method.md, section 7, row 1). It is piecewise
    constant in the logits, so it moves the reported loss and no weight.

    Args:
      logits: [B, H, W, 2].
      labels: int [B, H, W], 0 or 1.
      smooth: in pixels.

    Returns:
      A scalar in [0, 1] whose gradient is zero.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    p = jnp.argmax(logits, axis=-1).astype(dtype)
    g = labels.astype(dtype)
    return 1 - (2 * (p * g).sum() + smooth) / (p.sum() + g.sum() + smooth)


def standardise(image: Array, *, over: str, epsilon: float = 1e-6) -> tuple[Array, Array, Array]:
    """Standardises pixels locally: (x - mean) / sqrt(unbiased variance + epsilon).

    Args:
      image: [B, H, W]; 16 divides H and W if `over` is 'patch'.
      over: 'row' (each line of W pixels, as released) or 'patch' (each 16×16 patch).
      epsilon: added to the variance.

    Returns:
      The standardised image, the means and the scales, all [B, H, W].
    """
    image = _wide(image)
    if over == "row":
        mean, var = image.mean(-1, keepdims=True), image.var(-1, keepdims=True, ddof=1)
    elif over == "patch":
        b, h, w = image.shape
        patches = image.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH)
        mean, var = (
            upsample_patches(x[:, :, 0, :, 0])
            for x in (
                patches.mean((2, 4), keepdims=True),
                patches.var((2, 4), keepdims=True, ddof=1),
            )
        )
    else:
        raise ValueError(f"over is {over!r}; it must be one of {TARGETS}")
    scale = jnp.sqrt(var + epsilon)
    mean, scale = jnp.broadcast_to(mean, image.shape), jnp.broadcast_to(scale, image.shape)
    return (image - mean) / scale, mean, scale


def upsample_patches(patches: Array) -> Array:
    """Repeats each entry of [B, h, w] over its 16×16 pixels: [B, 16h, 16w]."""
    return jnp.repeat(jnp.repeat(patches, PATCH, axis=1), PATCH, axis=2)


def mse(prediction: Array, target: Array) -> Array:
    """Mean squared error, a scalar >= 0, over all elements of two arrays [...] of one shape."""
    return jnp.square(_wide(prediction) - _wide(target)).mean()


def masked_mse(prediction: Array, target: Array, patches: Array) -> Array:
    """Mean squared error over the pixels of masked patches (He et al., MAE, 2022).

    Args:
      prediction: [B, H, W].
      target: [B, H, W].
      patches: bool [B, H/16, W/16], True where masked.

    Returns:
      A scalar; 0 if nothing is masked.
    """
    weight = upsample_patches(patches).astype(jnp.promote_types(prediction.dtype, jnp.float32))
    error = jnp.square(_wide(prediction) - _wide(target))
    return (error * weight).sum() / jnp.maximum(weight.sum(), 1)


def l2_normalise(x: Array, *, epsilon: float = 1e-12) -> Array:
    """Scales vectors [..., D] to unit length; the norm is taken as at least `epsilon`."""
    x = _wide(x)
    square = jnp.square(x).sum(-1, keepdims=True)
    # The root of the clamped square keeps the gradient of a zero vector finite.
    return x / jnp.sqrt(jnp.maximum(square, epsilon**2))


def info_nce(
    queries: Array, keys: Array, positives: Array, *, temperature: float
) -> tuple[Array, Array]:
    """InfoNCE (van den Oord et al., 2018): cross-entropy of each query against all keys.

    Args:
      queries: [B, D], any length.
      keys: [K, D], any length; in self-supervision of the whole global batch, without gradient.
      positives: int [B], the row of `keys` that belongs to each query.
      temperature: > 0; divides the cosines.

    Returns:
      The mean loss in nats (not multiplied by any temperature), and the fraction of queries whose
      positive is the nearest key.
    """
    return _nce(_cosines(queries, keys) / temperature, positives)


def queue_nce(
    queries: Array, keys: Array, queue: Array, *, temperature: float
) -> tuple[Array, Array]:
    """InfoNCE of MoCo (He et al., 2020): each query against its own key and those of a queue.

    Keys of other examples of the batch are no negatives, unless the queue holds them.

    Args:
      queries: [B, D], any length.
      keys: [B, D], any length, the positive of each query; in MoCo without gradient.
      queue: [K, D], any length, the negatives; in MoCo keys of earlier batches.
      temperature: > 0; divides the cosines.

    Returns:
      The mean loss in nats, log(K + 1) where nothing tells the positive from the negatives, and the
      fraction of queries whose positive is nearer than all negatives.
    """
    own = (l2_normalise(queries) * l2_normalise(keys)).sum(-1, keepdims=True)
    logits = jnp.concatenate([own, _cosines(queries, queue)], axis=-1) / temperature
    return _nce(logits, jnp.zeros(len(queries), jnp.int32))


def spread(keys: Array) -> Array:
    """How much normalised keys [B, D] vary: >= 0, 0 when collapsed, 1 for random directions."""
    unit = l2_normalise(keys)
    return unit.std(0).mean() * unit.shape[-1] ** 0.5


def _cosines(a: Array, b: Array) -> Array:
    """Cosines [A, B] of all pairs of rows of [A, D] and [B, D]."""
    return jnp.matmul(
        l2_normalise(a),
        l2_normalise(b).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def _nce(logits: Array, positives: Array) -> tuple[Array, Array]:
    accuracy = (logits.argmax(-1) == positives).mean(dtype=logits.dtype)
    return cross_entropy(logits, positives), accuracy
