"""What the protocol `fair` promises: what it refuses, and what a study must own up to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections

from cmunet_jax.sweep import variants
from tfds_angio.errors import UserError

FAIR = "fair"
DRAWS = 3  # of the labelled images, at least
SPLITS_BY_IMAGE = "paper"


class Budget(NamedTuple):
    """The length of a pre-training: optimiser steps, and images a step."""

    steps: int
    batch_size: int

    @property
    def images(self) -> int:
        """Images that the network sees, each as often as it comes up."""
        return self.steps * self.batch_size


def guard(sweep: ml_collections.ConfigDict, parts: variants.Parts, variant: str) -> None:
    """Under `fair` nothing but the final evaluation reads the test split.

    A variant may: that is then what it is there to show.

    Raises:
      UserError: naming the key that would read it.
    """
    if sweep.protocol != FAIR:
        return
    test = sweep.test_split
    searching = len(tuple(sweep.learning_rates)) > 1 and not sweep.search.folds
    if searching and sweep.search.split == test:
        raise UserError(
            f"config.search.split='{test}' is also config.test_split: learning rates would be "
            "chosen on test images. Search elsewhere, for example on images held out of train: "
            "--config.data.splits=holdout:100 --config.search.split=holdout"
        )
    if not variant and parts.finetune.eval_split == test:
        raise UserError(
            f"config.finetune.eval_split='{test}' is also config.test_split, which protocol fair "
            "reads once, at the end. Set --config.finetune.eval_split= (nothing) or another split."
        )


def check_budgets(sweep: ml_collections.ConfigDict, budgets: Mapping[str, Budget]) -> None:
    """Under `fair` all methods are pre-trained on as many images, to within a batch.

    Args:
      sweep: config of the sweep stage.
      budgets: of each method's pre-training, without variants.

    Raises:
      UserError: naming the budgets, unless config.pretrain_for='own' asks for unequal ones.
    """
    if sweep.protocol != FAIR or sweep.pretrain_for == variants.OWN or _are_equal(budgets):
        return
    raise UserError(
        f"protocol fair gives every method the same pre-training, but config.pretrain_for="
        f"'{sweep.pretrain_for}' makes them see different numbers of images ({_text(budgets)}). "
        f"Give one duration in examples, such as --config.pretrain_for='48000 examples', or "
        f"--config.pretrain_for={variants.OWN} to let every recipe take its own time."
    )


def deviations(sweep: ml_collections.ConfigDict, budgets: Mapping[str, Budget]) -> list[str]:
    """Sentences on where a study under `fair` is less than that protocol asks for.

    Args: as for `check_budgets`.
    """
    if sweep.protocol != FAIR:
        return []
    found = []
    if len(tuple(sweep.draws)) < DRAWS:
        found.append(
            f"Draws of the labelled images: {len(tuple(sweep.draws))} instead of at least {DRAWS}."
        )
    if "epoch" in str(sweep.finetune.train_for):
        found.append(
            f"Fine-tuning lasts {sweep.finetune.train_for} instead of a number of steps, so fewer "
            "labels get fewer updates."
        )
    if not _are_equal(budgets):
        found.append(f"Pre-training saw different numbers of images: {_text(budgets)}.")
    measured = (sweep.evaluate.protocol, sweep.evaluate.resolution)
    if measured != ("fixed", "native"):
        found.append(
            f"Measured with protocol '{measured[0]}' at {measured[1]} resolution instead of per "
            "image at native resolution."
        )
    if sweep.data.splits == SPLITS_BY_IMAGE:
        found.append("The splits divide by image: a patient may be in training and test.")
    return found


def _are_equal(budgets: Mapping[str, Budget]) -> bool:
    """Whether budgets differ by no more than the rounding to whole steps."""
    images = [budget.images for budget in budgets.values()]
    largest = max((budget.batch_size for budget in budgets.values()), default=0)
    return max(images, default=0) - min(images, default=0) <= largest


def _text(budgets: Mapping[str, Budget]) -> str:
    return ", ".join(f"{method} {budget.images:,}" for method, budget in budgets.items())
