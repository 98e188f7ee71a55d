"""Transfer of weights: what is loaded, what is refused, and what is said about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.objectives.base import Transfer
from cmunet_jax.objectives.cmunet import CMUNet
from cmunet_jax.objectives.scratch import Scratch
from cmunet_jax.train.transfer import format_report, transfer
from tfds_angio.errors import UserError


def full(shape, value):
    return jnp.asarray(np.full(shape, value, np.float32))  # Compiles nothing.


def weights(value, *, features=4, head=2):
    """Encoder and decoder with a head, each leaf filled with its own value."""
    params = {
        "encoder": {"conv": {"kernel": full((3, features), value), "bias": full(4, value)}},
        "decoder": {
            "conv": {"kernel": full((5,), value + 1)},
            "head": {"kernel": full((4, head), value + 2)},
        },
    }
    stats = {"encoder": {"bn": {"mean": full(4, value + 3)}}}
    return params, stats


def pretrained(value, **options):
    """The same under another name, with parts that a segmentation network does not have."""
    params, stats = weights(value, **options)
    params["pixel_decoder"] = params.pop("decoder")
    params["projector"] = {"kernel": full((7, 7), value)}
    stats["projector"] = {"mean": full(7, value)}
    return params, stats


PLAN = Transfer({"encoder": "encoder", "pixel_decoder": "decoder"}, reinit=("decoder/head",))


def refused(*arguments):
    with pytest.raises(UserError) as error:
        transfer(*arguments)
    return str(error.value)


def test_each_leaf_goes_where_the_plan_says():
    params, stats, report = transfer(*weights(0.0), *pretrained(10.0, head=3), PLAN)
    assert (params["encoder"]["conv"]["kernel"] == 10).all()
    assert (params["decoder"]["conv"]["kernel"] == 11).all()
    assert (params["decoder"]["head"]["kernel"] == 2).all()  # Fresh, whatever the source's shape.
    assert params["decoder"]["head"]["kernel"].shape == (4, 2)
    assert (stats["encoder"]["bn"]["mean"] == 13).all()
    assert set(report.loaded) == {
        "params/encoder/conv/kernel",
        "params/encoder/conv/bias",
        "params/decoder/conv/kernel",
        "batch_stats/encoder/bn/mean",
    }
    assert set(report.reinitialised) == {"params/decoder/head/kernel"}
    assert report.left == {
        "params/pixel_decoder/head/kernel": (4, 3),
        "params/projector/kernel": (7, 7),
        "batch_stats/projector/mean": (7,),
    }


def test_neither_side_is_changed_and_no_buffer_is_shared():
    target, source = weights(0.0), pretrained(10.0)
    params, stats, _ = transfer(*target, *source, PLAN)
    jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)((params, stats))
    for tree, expected in ((target, weights(0.0)), (source, pretrained(10.0))):
        same = jax.tree.map(np.array_equal, tree, expected)
        assert all(jax.tree.leaves(same))


def test_numpy_sources_become_device_arrays():
    source = jax.tree.map(np.asarray, pretrained(10.0))
    params, _, _ = transfer(*weights(0.0), *source, PLAN)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_only_the_encoder():
    params, _, report = transfer(*weights(0.0), *pretrained(10.0), Transfer({"encoder": "encoder"}))
    assert (params["decoder"]["conv"]["kernel"] == 1).all()
    assert {path.split("/")[1] for path in report.reinitialised} == {"decoder"}
    assert {path.split("/")[1] for path in report.loaded} == {"encoder"}


def test_everything_and_the_longest_prefix():
    params, _, report = transfer(*weights(0.0), *weights(10.0), Transfer({"": ""}))
    assert not report.reinitialised and not report.left
    source, stats = weights(10.0)
    source["better"] = source["encoder"].pop("conv")
    plan = Transfer({"": "", "better": "encoder/conv"})
    params, _, _ = transfer(*weights(0.0), source, stats, plan)
    assert (params["encoder"]["conv"]["kernel"] == 10).all()


def test_a_prefix_matches_whole_names():
    source, stats = pretrained(10.0)
    source["encoder_old"] = {"kernel": jnp.zeros(1)}
    _, _, report = transfer(*weights(0.0), source, stats, PLAN)
    assert "params/encoder_old/kernel" in report.left


def test_all_mismatches_are_named():
    source, stats = pretrained(10.0, features=8)
    source["encoder"]["conv"]["bias"] = jnp.zeros(4, jnp.bfloat16)
    source["pixel_decoder"]["convs"] = source["pixel_decoder"].pop("conv")
    stats["encoder"]["bn"]["mean"] = jnp.zeros(5)
    message = refused(*weights(0.0), source, stats, PLAN)
    assert "params/encoder/conv/kernel: source float32[3, 8], network float32[3, 4]" in message
    assert "params/encoder/conv/bias: source bfloat16[4], network float32[4]" in message
    assert "batch_stats/encoder/bn/mean: source float32[5], network float32[4]" in message
    assert "params/pixel_decoder/convs/kernel float32[5]" in message
    assert "(closest: params/decoder/conv/kernel)" in message
    assert "params/decoder/conv/kernel float32[5]" in message  # Missing in the source.


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_missing_statistic_is_refused(side):
    target, source = weights(0.0), pretrained(10.0)
    del (target if side == "target" else source)[1]["encoder"]
    assert "batch_stats/encoder/bn/mean" in refused(*target, *source, PLAN)


@pytest.mark.parametrize(
    "plan, words",
    [
        (Transfer({"encoderr": "encoder"}), "'encoderr' in the source (closest: encoder)"),
        (Transfer({"encoder": "backbone"}), "'backbone' in the network"),
        (Transfer({"encoder": "encoder"}, ("decoder/heads",)), "(closest: decoder/head)"),
        (Transfer({}), "nothing to transfer"),
        (Transfer({"encoder": "encoder"}, ("encoder",)), "nothing to transfer"),
    ],
)
def test_a_plan_that_loads_less_than_it_says_is_refused(plan, words):
    assert words in refused(*weights(0.0), *pretrained(10.0), plan)


def test_two_sources_for_one_place_are_refused():
    source, stats = pretrained(10.0)
    source["decoder"] = source["pixel_decoder"]
    plan = Transfer(
        {"encoder": "encoder", "pixel_decoder": "decoder", "decoder": "decoder"}, ("decoder/head",)
    )
    assert "mapped from two places" in refused(*weights(0.0), source, stats, plan)


def test_the_report_is_a_short_table_with_counts():
    *_, report = transfer(*weights(0.0), *pretrained(10.0), PLAN)
    rows = [line.split() for line in format_report(report).splitlines()]
    assert ["loaded", "pixel_decoder", "→", "decoder", "1", "5", "0"] in rows
    assert ["encoder", "3", "16", "4"] in rows
    assert ["re-initialised", "decoder/head", "1", "8", "0"] in rows
    assert ["left", "unused", "pixel_decoder/head", "1", "8", "0"] in rows
    assert ["projector", "2", "49", "7"] in rows
    assert max(map(len, format_report(report).splitlines())) <= 88


def test_pretrained_cmunet_fits_the_segmentation_network():
    def init(objective, seed):
        return jax.eval_shape(lambda k: objective.init(k, (32, 32, 1)), jax.random.key(seed))

    def fill(variables, value):
        tree = (variables.params, variables.batch_stats)
        return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), tree)

    target, source = fill(init(Scratch(width=4), 0), 0), fill(init(CMUNet(width=4), 1), 1)
    params, stats, report = transfer(*target, *source, CMUNet.transfer)
    assert {"/".join(p.split("/")[1:3]) for p in report.reinitialised} == {"decoder/head"}
    head = params["decoder"].pop("head")
    assert all((leaf == 1).all() for leaf in jax.tree.leaves((params, stats)))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(head))
