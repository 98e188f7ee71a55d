"""What "the best checkpoint" means, in one place for saving and loading."""

import math
from collections.abc import Mapping


def best_step(scores: Mapping[int, float], mode: str) -> int | None:
    """The step with the best finite score; the earliest of equals, None if there is none.

    Args:
      scores: {step: value}.
      mode: 'max' or 'min'.
    """
    finite = {step: score for step, score in scores.items() if math.isfinite(score)}
    if not finite:
        return None
    sign = 1.0 if mode == "max" else -1.0
    return max(sorted(finite), key=lambda step: sign * finite[step])
