"""Resident and streamed runs see the same batches, bit for bit, on any number of devices."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.data import source
from cmunet_jax.data.prepared import OnTheFly, prepare
from cmunet_jax.data.preprocessing import create
from tests.data.fakes import FakeDataset
from tfds_angio.errors import UserError

SIZE, BATCH, SEED = 10, 4, 5


@pytest.fixture(scope="module", params=["fixed", "paper"])
def split(request, tmp_path_factory):
    chain = create({"name": request.param, "size": 32})
    dataset = FakeDataset(tmp_path_factory.mktemp("data"), SIZE)
    return prepare(dataset, "train", chain, progress=False)


def resident(split, step):
    arrays = jax.tree.map(jnp.asarray, split.arrays())
    return jax.jit(
        lambda data, step: source.gather(
            data, source.batch_indices(SEED, step, size=SIZE, batch_size=BATCH)
        )
    )(arrays, step)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def take(count, rows, **options):
    with source.stream(rows, seed=SEED, batch_size=BATCH, **options) as batches:
        return list(itertools.islice(batches, count))


@pytest.mark.parametrize("threads", [0, 3])
def test_streamed_batches_are_the_resident_ones(split, threads):
    for step, batch in enumerate(take(7, split, threads=threads)):
        assert_equal(resident(split, step), batch)


def test_preparing_on_the_fly_changes_nothing(tmp_path):
    chain = create({"name": "fixed", "size": 32})
    dataset = FakeDataset(tmp_path, SIZE)
    split = prepare(dataset, "train", chain, progress=False)
    for one, other in zip(take(3, split), take(3, OnTheFly(dataset, "train", chain)), strict=True):
        assert_equal(one, other)


def test_resuming_is_starting_later(split):
    whole = take(8, split)
    for start in (1, 2, 5):
        for one, other in zip(whole[start:], take(8 - start, split, start_step=start), strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("split", ["fixed"], indirect=True)  # processes take seconds to start
def test_a_worker_process_changes_nothing(split):
    for one, other in zip(take(5, split), take(5, split, workers=2), strict=True):
        assert_equal(one, other)


def test_a_stream_can_end(split):
    assert len(take(None, split, steps=5)) == 5
    assert len(take(None, split, steps=5, start_step=3)) == 2


def test_hosts_share_a_batch(split):
    whole = take(4, split)
    shares = [(0, 3), (1, 2)]  # devices may lie in any order on the mesh
    parts = [take(4, split, share=share) for share in shares]
    for step, batch in enumerate(whole):
        for share, part in zip(shares, parts, strict=True):
            assert_equal({name: rows[list(share)] for name, rows in batch.items()}, part[step])


def test_impossible_batches_are_refused(split):
    with pytest.raises(UserError, match="set of 10"):
        source.stream(split, seed=0, batch_size=11)


def test_decoding_gives_the_prepared_floats(split):
    raw = resident(split, 0)
    batch = jax.jit(source.decode)(raw)
    assert batch["image"].shape == (BATCH, 32, 32, 1) and batch["image"].dtype == jnp.float32
    assert batch["mask"].shape == (BATCH, 32, 32) and batch["mask"].dtype == jnp.int32
    for row, i in enumerate(np.asarray(raw["index"])):
        expected = split.code[i].astype(np.float32) * split.scale[i] + split.offset[i]
        np.testing.assert_allclose(batch["image"][row, ..., 0], expected, atol=1e-6)
        np.testing.assert_array_equal(batch["mask"][row], split.mask[i])
    np.testing.assert_array_equal(batch["index"], raw["index"])


def test_decoding_is_the_same_in_and_out_of_jit(split):
    raw = resident(split, 1)
    eager, jitted = source.decode(raw), jax.jit(source.decode)(raw)
    np.testing.assert_allclose(eager["image"], jitted["image"], atol=1e-6)
    np.testing.assert_array_equal(eager["mask"], jitted["mask"])


def test_without_masks_batches_have_none(tmp_path):
    chain = create({"name": "fixed", "size": 32})
    dataset = FakeDataset(tmp_path, SIZE, labelled=False)
    split = prepare(dataset, "train", chain, with_masks=False, progress=False)
    (batch,) = take(1, split)
    assert "mask" not in batch and "mask" not in source.decode(resident(split, 0))


PROGRAM = """
import hashlib, json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from cmunet_jax.data import source, views
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
rng = np.random.default_rng(0)
data = {
    "code": rng.integers(0, 256, (20, 64, 64)).astype(np.uint8),
    "scale": rng.uniform(0.01, 0.03, 20).astype(np.float32),
    "offset": rng.uniform(-3, -2, 20).astype(np.float32),
    "mask": rng.integers(0, 2, (20, 64, 64)).astype(np.uint8),
}
data = jax.device_put(data, whole)
options = views.default_options("online_target", 64)
def step(data, number):
    raw = source.gather(data, source.batch_indices(3, number, size=20, batch_size=16))
    raw = jax.lax.with_sharding_constraint(raw, rows)
    made = views.make_views(
        ("online_target",), source.decode(raw), seed=3, step=number, config=options, train=True
    )
    return raw, jax.lax.with_sharding_constraint(made, rows)
raw, made = jax.jit(step)(data, jnp.int32(11))
assert len(raw["code"].sharding.device_set) == jax.device_count()
host = jax.device_get(raw)
digest = hashlib.sha256(b"".join(host[k].tobytes() for k in sorted(host))).hexdigest()
made = jax.device_get(made)
print(json.dumps({
    "devices": jax.device_count(), "raw": digest, "index": host["index"].tolist(),
    "patches": made["patches"].astype(int).tolist(),
    "views": [made[k][:, ::9, ::9, 0].astype(float).tolist() for k in ("view_a", "view_b")],
}))
"""


def test_eight_devices_see_what_one_sees(run_python, capsys):
    exec(compile(PROGRAM, "here", "exec"), {})
    one = json.loads(capsys.readouterr().out)
    eight = json.loads(run_python("-c", PROGRAM, devices=8).stdout)
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["raw"] == eight["raw"] and one["index"] == eight["index"]
    assert one["patches"] == eight["patches"]
    np.testing.assert_allclose(one["views"], eight["views"], atol=1e-5)
