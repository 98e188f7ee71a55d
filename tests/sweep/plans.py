"""Small plans for tests that need no network."""

from __future__ import annotations

import dataclasses
from typing import Any

from cmunet_jax.sweep.plan import SELECTED, Trial
from tests.sweep import stand_in

DATA = stand_in.DATA


def trial(key: str, kind: str = "finetune", *, needs: tuple[str, ...] = (), **behave: Any) -> Trial:
    """A trial that behaves as fake_trial says; the first of `needs` is its pre-training."""
    first = needs[0] if needs and needs[0].startswith("pre") else ""
    made = stand_in.trial(key, kind=kind, after=first)
    config: dict[str, Any] = dict(made.config) | {"behave": behave}
    rate = behave.get("rate", 1.0)
    searched = kind == "finetune" and any(name.startswith("search") for name in needs)
    config["optim"] = {"learning_rate": SELECTED if searched else rate}
    return dataclasses.replace(
        made,
        config=config,
        depends=needs,
        learning_rate=None if searched or kind == "pretrain" else rate,
        selection={"split": "val", "metric": "dice"} if kind == "search" else None,
    )


def study() -> list[Trial]:
    """A pre-training, a search of three rates and two fine-tunings; another one from scratch."""
    rates = {"search1": (1e-3, 0.5), "search2": (1e-2, 0.7), "search3": (1e-1, 0.6)}
    return [
        trial("pre", "pretrain"),
        *(
            trial(key, "search", needs=("pre",), rate=rate, value=value)
            for key, (rate, value) in rates.items()
        ),
        trial("fine1", needs=("pre", *rates)),
        trial("fine2", needs=("pre", *rates)),
        trial("scratch"),
    ]
