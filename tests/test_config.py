"""Typed arguments, durations, checks: cmunet_jax/config.py."""

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmunet_jax import config as lib
from tfds_angio.errors import UserError


def test_arguments_have_the_type_of_their_default():
    arg = lib.parse_arg(
        "n=3,rate=1,on=true,size=b", n=1, rate=0.5, on=False, size=("a", "b"), s="x"
    )
    assert arg.to_dict() == {"n": 3, "rate": 1.0, "on": True, "size": "b", "s": "x"}
    assert isinstance(arg.rate, float)


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("sise=a", ["'sise'", "did you mean 'size'"]),
        ("size=c", ["'c'", "a, b"]),
        ("n=1.5", ["n='1.5'", "int"]),
        ("on=perhaps", ["on", "true, false"]),
        ("n", ["n=VALUE"]),
    ],
)
def test_bad_arguments_are_named(arg, words):
    with pytest.raises(UserError) as error:
        lib.parse_arg(arg, size=("a", "b"), n=1, on=False)
    message = str(error.value)
    assert all(word in message for word in words)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("1 step", 1),
        ("3 epochs", 6),  # 18 examples, batch 8: 2 steps an epoch, the rest is dropped
        ("0.5 epochs", 1),
        ("80 examples", 10),
        ("10%", 20),
        ("0.1 %", 1),
        ("0 steps", 0),
    ],
)
def test_durations(text, steps):
    assert lib.steps_of(text, key="k", batch_size=8, examples=18, total=200) == steps


@given(st.text(max_size=12))
def test_a_duration_is_understood_or_named(text):
    try:
        steps = lib.steps_of(text, key="train_for", batch_size=8, examples=18, total=100)
    except UserError as error:
        assert "config.train_for" in str(error)
    else:
        assert isinstance(steps, int) and steps >= 0


def test_percent_needs_a_whole():
    with pytest.raises(UserError, match="percentage"):
        lib.steps_of("10%", key="train_for", batch_size=8, examples=18)


nested = st.recursive(
    st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=4), st.booleans()),
    lambda leaf: st.dictionaries(st.text("abc", min_size=1, max_size=3), leaf, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), nested, max_size=4))
def test_digest_ignores_order_and_differences_are_empty_for_equals(values):
    turned = dict(reversed(list(values.items())))
    assert lib.digest(values) == lib.digest(turned)
    assert lib.differences(values, turned) == []


def test_differences_name_the_key_and_both_values():
    lines = lib.differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 4})
    assert lines == ["a.b: 1 -> 3", "c: 2 -> (absent)", "d: (absent) -> 4"]


def base():
    return ml_collections.ConfigDict(
        {
            "stage": "pretrain",
            "batch_size": 8,
            "seed": 0,
            "ema_decay": 0.0,
            "accumulation": 2,
            "model": {"width": 4},
            "preprocessing": {"size": 64},
            "optim": {"learning_rate": 1e-3},
            "objective": {},
            "data": {},
            "views": {},
            "checkpoint": {"keep": 1},
        }
    )


def test_a_good_config_passes():
    lib.check(base())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("stage", "pretain", ["stage", "pretrain"]),
        ("preprocessing.size", 100, ["preprocessing.size=100", "96 or 112"]),
        ("batch_size", 0, ["batch_size"]),
        ("accumulation", 3, ["batch_size=8", "accumulation=3"]),
        ("model.width", -4, ["model.width"]),
        ("checkpoint.keep", 0, ["checkpoint.keep=0"]),
        ("seed", -1, ["seed=-1"]),
        ("ema_decay", 2.0, ["ema_decay=2.0"]),
        ("optim.learning_rate", 0.0, ["learning_rate"]),
        ("optim.learning_rate", float("nan"), ["learning_rate"]),
    ],
)
def test_impossible_values_are_named_with_a_remedy(key, value, words):
    config = base()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        lib.check(config)
    assert all(word in str(error.value) for word in words)
