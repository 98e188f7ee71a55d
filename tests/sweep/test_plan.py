"""The plan: which trials, on what they depend, and what makes two of them the same."""

import copy
import runpy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmunet_jax import config as config_lib
from cmunet_jax.stages import sweep as sweep_stage
from cmunet_jax.sweep import plan as plan_lib
from tests.conftest import ROOT
from tfds_angio.errors import UserError

GET_CONFIG = runpy.run_path(str(ROOT / "configs" / "sweep.py"))["get_config"]
IMAGES = 60


def examples(training):
    """Stands in for the data set: 60 labelled images and 40 others."""
    if training.stage == "pretrain":
        return IMAGES + 40
    if training.labels > IMAGES:
        raise UserError(f"config.labels={training.labels} is more than {IMAGES}")
    count = training.labels or IMAGES
    return count - count // training.folds if training.get("folds") else count


def study(argument="size=tiny", fingerprint="f" * 64, **changes):
    config = GET_CONFIG(argument)
    config.methods, config.labels, config.draws = ("scratch", "cmunet"), (18, 40), (0, 1)
    config.update_from_flattened_dict(changes)
    return plan_lib.make_plan(config, fingerprint=fingerprint, examples=examples)


def keys(trials, kind=None):
    return {trial.key for trial in trials if kind in (None, trial.kind)}


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    methods=st.lists(st.sampled_from(["scratch", "cmunet"]), min_size=1, unique=True),
    labels=st.lists(st.integers(8, IMAGES), min_size=1, max_size=3, unique=True),
    draws=st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    seeds=st.lists(st.integers(0, 4), min_size=1, max_size=2, unique=True),
    rates=st.lists(st.sampled_from([1e-4, 1e-3, 1e-2]), min_size=1, unique=True),
    folds=st.sampled_from([0, 3]),
)
def test_every_combination_is_there_once_after_what_it_needs(
    methods, labels, draws, seeds, rates, folds
):
    trials = study(
        methods=tuple(methods),
        labels=tuple(labels),
        draws=tuple(draws),
        seeds=tuple(seeds),
        learning_rates=tuple(rates),
        **{"search.folds": folds},
    )
    pre = len(seeds) * ("cmunet" in methods)
    searches = len(methods) * len(labels) * len(rates) * (folds or 1) if len(rates) > 1 else 0
    finals = len(methods) * len(labels) * len(draws) * len(seeds)
    counts = [sum(t.kind == kind for t in trials) for kind in ("pretrain", "search", "finetune")]
    assert counts == [pre, searches, finals]
    assert len(keys(trials)) == len({t.name for t in trials}) == len(trials)
    before: dict[str, plan_lib.Trial] = {}
    for trial in trials:
        assert set(trial.depends) <= set(before), "listed after what it needs"
        kinds = [before[key].kind for key in trial.depends]
        assert kinds.count("pretrain") == (trial.method != "scratch" and trial.kind != "pretrain")
        expected = len(rates) * (folds or 1) if trial.kind == "finetune" and searches else 0
        assert kinds.count("search") == expected
        for key in trial.depends:
            assert before[key].method == trial.method
            assert before[key].labels in (None, trial.labels)
        before[trial.key] = trial


@pytest.mark.parametrize(
    "change",
    [
        {"data.dir": "/elsewhere"},
        {"data.workers": 3},
        {"lease_seconds": 7.0},
        {"title": "another"},
        {"finetune.log_every": "1 steps"},
        {"pretrain.cmunet.checkpoint.keep": 9},
        {"methods": ("cmunet", "scratch")},
        {"labels": (40, 18)},
        {"pretrain.mae.batch_size": 4},
    ],
    ids=str,
)
def test_what_changes_no_result_changes_no_key(change):
    assert keys(study(**change)) == keys(study())


def test_what_changes_a_result_changes_its_key_and_those_that_depend_on_it():
    base = study()
    other = study(pretrain_for="240 examples")
    assert not keys(base, "pretrain") & keys(other, "pretrain")
    for trial in base:
        assert (trial.key in keys(other)) == (trial.method == "scratch"), trial.name
    other = study(**{"finetune.batch_size": 4})
    assert keys(base, "pretrain") == keys(other, "pretrain")
    assert not (keys(base) - keys(base, "pretrain")) & keys(other)
    other = study(**{"evaluate.weights": "raw"})
    assert keys(base, "search") == keys(other, "search")
    assert not keys(base, "finetune") & keys(other, "finetune")
    assert not keys(base) & keys(study(fingerprint="0" * 64))
    larger = study(labels=(18, 40, 50))
    assert keys(base) < keys(larger), "a larger study keeps what was done"


SKIP = ("name", "stage", "preset", "splits", "options", "source")


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_every_leaf_of_a_trials_config_is_in_its_key_unless_it_is_free(data):
    """Independent of how the key is made: change one leaf anywhere and compare."""
    config = GET_CONFIG("size=tiny")
    config.methods, config.labels, config.draws = ("cmunet",), (18,), (0,)
    config.learning_rates = (1e-3,)
    part = data.draw(st.sampled_from(["pretrain.cmunet", "finetune"]))
    group = config.pretrain.cmunet if part != "finetune" else config.finetune
    leaves = {
        key: value
        for key, value in config_lib.flatten(group)
        if isinstance(value, int | float)
        and key.split(".")[0] not in ("data", "labels", "draw", "seed", "fold", "folds")
        and key not in ("batch_size", "optim.learning_rate", "eval_images")
    }
    key = data.draw(st.sampled_from(sorted(leaves)))
    changed = copy.deepcopy(config)
    value = leaves[key]
    changed.update_from_flattened_dict(
        {f"{part}.{key}": not value if isinstance(value, bool) else value + 1}
    )
    make = lambda c: plan_lib.make_plan(c, fingerprint="f", examples=examples)  # noqa: E731
    kind = "finetune" if part == "finetune" else "pretrain"
    same = keys(make(config), kind) == keys(make(changed), kind)
    assert same == (key in config_lib.FREE), key


def test_pretraining_is_shared_by_labels_and_draws_but_not_by_seeds():
    trials = study(seeds=(0, 1))
    for seed in (0, 1):
        needed = {
            t.depends[0] for t in trials if t.kind == "finetune" and t.method == "cmunet"
            and t.seed == seed
        }  # fmt: skip
        assert len(needed) == 1
    assert len(keys(trials, "pretrain")) == 2


def test_fair_gives_every_label_count_the_same_steps_and_paper_does_not():
    fair = {t.steps for t in study() if t.kind == "finetune"}
    assert len(fair) == 1
    paper = study("size=tiny,protocol=paper")
    steps = {t.labels: t.steps for t in paper if t.kind == "finetune"}
    batch = GET_CONFIG("size=tiny").finetune.batch_size
    assert steps == {18: 128 * (18 // batch), 40: 128 * (40 // batch)}
    folds = [t for t in paper if t.kind == "search"]
    assert {t.fold for t in folds} == {0, 1, 2} and len({t.learning_rate for t in folds}) == 6
    assert {t.selection["split"] for t in folds} == {"fold"}
    final = next(t for t in paper if t.kind == "finetune")
    assert final.config["checkpoint"]["best"] == "test/dice"
    assert final.config["eval_split"] == "test" and final.evaluation["step"] == "best"


def test_a_search_takes_a_share_of_the_steps_and_never_looks_at_the_test_split():
    trials = study(**{"search.fraction": 0.5, "finetune.train_for": "40 steps"})
    assert {t.steps for t in trials if t.kind == "search"} == {20}
    assert {t.config["eval_split"] for t in trials if t.kind == "search"} == {"val"}
    assert {t.evaluation["split"] for t in trials if t.kind == "finetune"} == {"test"}
    assert all(t.evaluation is None for t in trials if t.kind != "finetune")


@pytest.mark.parametrize(
    ("duration", "fraction", "expected"),
    [
        ("800 steps", 0.25, "200 steps"),
        ("1 step", 0.1, "1 steps"),
        ("128 epochs", 0.5, "64 epochs"),
        ("5e3 examples", 0.1, "500 examples"),
        ("7 steps", 1.0, "7 steps"),
    ],
)
def test_scaled(duration, fraction, expected):
    assert plan_lib.scaled(duration, fraction) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods is empty"),
        ({"methods": ("scratch", "cmunett")}, "did you mean 'cmunet'"),
        ({"labels": ()}, "labels is empty"),
        ({"labels": ("",)}, "labels is empty"),
        ({"labels": (18, 18)}, "twice"),
        ({"labels": (18, 4000)}, "labels=4000"),
        ({"draws": (-1,)}, "draws=.*0 or more"),
        ({"learning_rates": (0.0, 1e-3)}, "learning_rates=.*above 0"),
        ({"search.fraction": 0.0}, "search.fraction"),
        ({"search.metric": "dize"}, "did you mean 'dice'"),
        ({"search.split": "test"}, "holdout"),
        ({"finetune.eval_split": "test"}, "reads once"),
        ({"variants": ("hard_dize",)}, "did you mean 'hard_dice'"),
        ({"variants": ("mine: finetune.optm.b1=0.5",)}, "optm.b1"),
        ({"variants": ("mine: finetune.batch_size=many",)}, "batch_size"),
        ({"variants": ("mine: other.batch_size=1",)}, "'other'"),
        ({"variants": ("mine: finetune.batch_size",)}, "needs a value"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)


def test_a_command_line_gives_lists_with_commas():
    assert keys(study(methods=("scratch,cmunet",))) == keys(study())


def test_variants_change_one_thing_for_the_methods_that_it_concerns():
    trials = study(variants=("hard_dice", "row_target", "select_on_test"))
    by_variant = {}
    for trial in trials:
        by_variant.setdefault(trial.variant, set()).add((trial.method, trial.kind))
    both = {("scratch", "finetune"), ("cmunet", "finetune")}
    assert by_variant["hard_dice"] == both | {("scratch", "search"), ("cmunet", "search")}
    assert by_variant["row_target"] == {
        ("cmunet", kind) for kind in ("pretrain", "search", "finetune")
    }
    assert by_variant["select_on_test"] == both, "its search is that of the study"
    changed = next(t for t in trials if t.variant == "hard_dice" and t.kind == "finetune")
    assert changed.config["objective"]["soft_dice"] is False
    selected = next(t for t in trials if t.variant == "select_on_test")
    assert selected.config["checkpoint"]["best"] == "test/dice"
    assert len({t.name for t in trials}) == len(trials)


def test_variants_may_share_the_rates_of_the_study():
    own = study(variants=("row_target",))
    shared = study(variants=("row_target",), **{"search.variants": False})
    assert {t.key for t in shared if t.kind == "search"} < {t.key for t in own}
    for trial in shared:
        if trial.variant and trial.kind == "finetune":
            found = [t for t in shared if t.key in trial.depends]
            assert {(t.kind, t.variant) for t in found} == {
                ("pretrain", "row_target"), ("search", "")
            }  # fmt: skip
    alone = study(variants=("row_target",), main_variant=False, **{"search.variants": False})
    assert {t.key for t in alone} < {t.key for t in shared}


def test_a_variant_can_be_spelled_out():
    trials = study(
        variants=("long: finetune.train_for=48_steps pretrain.cmunet.optim.b2=0.9",),
        variant_labels=(18,),
    )
    found = [t for t in trials if t.variant == "long"]
    assert {t.labels for t in found if t.kind == "finetune"} == {18}
    assert {t.steps for t in found if t.kind == "finetune"} == {48}
    (pre,) = [t for t in found if t.kind == "pretrain"]
    assert pre.config["optim"]["b2"] == 0.9


def test_what_follows_a_key_follows_that_of_a_variant(tiny_dataset, tmp_path, monkeypatch):
    config, trials = GET_CONFIG("size=tiny"), []
    config.data.dir, config.data.name = str(tiny_dataset.directory.parents[2]), tiny_dataset.name
    config.methods, config.labels, config.draws = ("scratch", "cmunet"), (8,), (0,)
    changes = ("finetune.preprocessing.size=96", "pretrain.cmunet.preprocessing.size=128")
    config.variants, config.search.variants = (f"big: {' '.join(changes)}",), False
    given = lambda plan, config, workdir: trials.extend(plan) or 0  # noqa: E731
    monkeypatch.setattr(sweep_stage.runners, "RUNNERS", {config.runner: given})
    assert sweep_stage.run(config, tmp_path) == 0
    views = {t.kind: t.config["views"] for t in trials if t.variant == "big"}
    assert views["finetune"]["size"] == 96
    assert (views["pretrain"]["base_size"], views["pretrain"]["crop"]) == (128, 112)
    assert {
        t.config["views"]["size"] for t in trials if t.kind == "finetune" and not t.variant
    } == {config.finetune.preprocessing.size}
