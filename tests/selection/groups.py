"""Features whose groups are known, and their limits."""

import numpy as np

from cmunet_jax.selection import limits
from cmunet_jax.selection.pool import Item


def blobs(sizes, *, seed=0, spread=0.03, numbers=8):
    """(features of length 1 [N, numbers], blob of each): tight groups around orthogonal axes."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.eye(numbers)[codes] + spread * rng.normal(size=(len(codes), numbers))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), codes


def items(count, *, patients=None, centres=None, labelled=()):
    """Items 'i000'…; patients and centres by position."""
    return [
        Item(
            f"i{at:03d}",
            patients[at] if patients else "",
            centres[at] if centres else "",
            at in labelled,
        )
        for at in range(count)
    ]


def rules(pool, k, *, per_patient=0, centres="any"):
    return limits.of_items(pool, k=k, per_patient=per_patient, centres=centres)
