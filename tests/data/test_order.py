"""Batches are a function of (seed, step): permutations of an epoch, cut into batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmunet_jax.data import keys, order
from cmunet_jax.data.order import batch_indices
from tfds_angio.errors import UserError


@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.sampled_from([7, 16, 33]),
    batch_size=st.sampled_from([1, 4, 7]),
    epoch=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_an_epoch_shows_every_example_once(seed, size, batch_size, epoch):
    per_epoch = order.steps_per_epoch(size, batch_size)
    first = epoch * per_epoch
    batches = [
        np.asarray(batch_indices(seed, first + i, size=size, batch_size=batch_size))
        for i in range(per_epoch)
    ]
    seen = np.concatenate(batches)
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int32 for batch in batches)
    assert len(set(seen)) == len(seen) == size // batch_size * batch_size
    assert set(seen) <= set(range(size))
    # and it is the order of the host, cut
    np.testing.assert_array_equal(seen, order.host_epoch_order(seed, epoch, size)[: len(seen)])


def test_left_out_examples_change_from_epoch_to_epoch():
    left_out = [set(order.host_epoch_order(0, epoch, 10)[8:]) for epoch in range(30)]
    assert set.union(*left_out) == set(range(10))


def test_jit_equals_eager_and_a_step_needs_no_history():
    jitted = jax.jit(lambda seed, step: batch_indices(seed, step, size=50, batch_size=8))
    for step in (0, 5, 6, 1234):
        expected = batch_indices(3, step, size=50, batch_size=8)
        np.testing.assert_array_equal(jitted(jnp.int32(3), jnp.int32(step)), expected)


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(order.host_epoch_order(seed, epoch, 20)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_order_is_uniform():
    """First place of 600 epochs over 6 examples: chi-squared with 5 degrees of freedom."""
    firsts = jax.vmap(lambda epoch: order.epoch_order(1, epoch, 6)[0])(jnp.arange(600))
    counts = np.bincount(firsts, minlength=6)
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # probability 0.001


@pytest.mark.parametrize("size,batch_size,word", [(5, 6, "set of 5"), (5, 0, "at least 1")])
def test_impossible_batches_are_refused(size, batch_size, word):
    with pytest.raises(UserError, match=word):
        batch_indices(0, 0, size=size, batch_size=batch_size)


def test_streams_steps_and_examples_have_keys_of_their_own():
    def draw(seed, stream, step):
        batch = keys.example_keys(seed, stream, step, jnp.arange(4))
        return [tuple(row) for row in np.asarray(jax.random.key_data(batch))]

    drawn = [draw(s, name, t) for s in (0, 1) for name in ("a", "b") for t in (0, 1)]
    flat = [key for batch in drawn for key in batch]
    assert len(set(flat)) == len(flat) == 32
    assert draw(0, "a", 1) == draw(0, "a", 1)


def test_keys_do_not_follow_the_default_generator_of_the_user():
    expected = np.asarray(batch_indices(0, 3, size=20, batch_size=5))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(batch_indices(0, 3, size=20, batch_size=5), expected)
