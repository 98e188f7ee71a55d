"""The protocol `fair`: equal pre-training for all, and what is lacking is said."""

import pytest

from cmunet_jax.sweep import fairness
from cmunet_jax.sweep import plan as plan_lib
from tests.sweep.test_plan import GET_CONFIG, examples
from tfds_angio.errors import UserError

METHODS = ("scratch", "cmunet", "genesis", "mae", "moco", "spark")


def _study(argument, count=2000, **changes):
    """(config, its pre-training budgets) on a pool of `count` images."""
    config = GET_CONFIG(argument)
    config.labels, config.draws, config.methods = (40,), (0, 1, 2), METHODS
    config.update_from_flattened_dict(changes)
    of = lambda t: count if t.stage == "pretrain" else examples(t)  # noqa: E731
    trials = plan_lib.make_plan(config, fingerprint="f", examples=of)
    return config, plan_lib.budgets(trials)


@pytest.mark.parametrize("size", ["paper", "small", "demo", "tiny"])
def test_all_methods_are_pretrained_on_as_many_images(size):
    config, budgets = _study(f"size={size}")
    assert set(budgets) == set(METHODS) - {"scratch"}
    wanted = int(config.pretrain_for.split()[0])
    for budget in budgets.values():
        assert abs(budget.images - wanted) <= budget.batch_size / 2
    recipes = {name: (part.batch_size, part.optim.name) for name, part in config.pretrain.items()}
    assert len(set(recipes.values())) == (4 if size == "paper" else 1), "each its own recipe"
    assert fairness.deviations(config, budgets) == []


@pytest.mark.parametrize("duration", ["", "300 epochs", "2000 steps"])
def test_unequal_pretraining_is_refused_unless_it_is_asked_for(duration):
    with pytest.raises(UserError, match="cmunet .*spark .*pretrain_for=own") as caught:
        _study("size=paper", pretrain_for=duration)
    assert "\n" not in str(caught.value)
    config, budgets = _study("size=paper", pretrain_for="own")
    assert budgets["spark"].images > 4 * budgets["cmunet"].images
    (line,) = fairness.deviations(config, budgets)
    assert "Pre-training saw different numbers of images: cmunet" in line
    assert _study("size=paper,protocol=paper")[1] == budgets, "released, each its own"


def test_a_variant_may_change_the_length_of_its_pretraining():
    config, budgets = _study("size=tiny", variants=("long: pretrain.cmunet.train_for=99_steps",))
    assert fairness.deviations(config, budgets) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"draws": (0, 1)}, "2 instead of at least 3"),
        ({"finetune.train_for": "5 epochs"}, "fewer labels get fewer updates"),
        ({"evaluate.resolution": "network"}, "instead of per image at native resolution"),
        ({"evaluate.protocol": "paper"}, "instead of per image at native resolution"),
        ({"data.splits": "paper"}, "divide by image"),
    ],
    ids=str,
)
def test_what_a_study_lacks_is_said(changes, text):
    (line,) = fairness.deviations(*_study("size=tiny", **changes))
    assert text in line
    assert fairness.deviations(*_study("size=tiny,protocol=paper", **changes)) == []
