"""The evaluator drops nothing, pads without a trace and compares at the size that it says."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.data import preprocessing
from cmunet_jax.data.prepared import prepare
from cmunet_jax.evaluation import calibration, calibre
from cmunet_jax.evaluation.evaluator import evaluate
from cmunet_jax.evaluation.inference import Reader, predict
from cmunet_jax.evaluation.metrics import TABLE, Pair
from cmunet_jax.evaluation.paper import PAPER_TABLE, paper_metrics
from tests.evaluation import fakes
from tests.evaluation.fakes import SIZE, bright, chain, dataset
from tests.evaluation.masks import measure, vessel
from tfds_angio.errors import UserError

QUIET = {"progress": False, "resamples": 200, "workers": 2}


def run(data: Any = None, *, forward=bright, variables=1.0, preprocessing=None, **options):
    return evaluate(
        forward, variables, data or dataset(), "val", preprocessing or chain(), **(QUIET | options)
    )


def noisy(variables, images):
    """Wrong in places that depend on the image only."""
    waves = np.sin(np.arange(SIZE) * 0.7)[None, :, None] * np.cos(np.arange(SIZE) * 0.4)[None, None]
    return np.stack([np.zeros(images.shape[:3]), images[..., 0] - 1 + 2 * waves], -1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_the_batch_size_changes_no_row_and_every_image_has_one(batch_size):
    rows = run(forward=noisy, batch_size=batch_size).rows
    assert [row["id"] for row in rows] == [f"image{at:02d}" for at in range(7)]
    assert rows == run(forward=noisy, batch_size=2).rows


def test_the_network_always_sees_whole_batches_of_one_shape():
    shapes = set()

    def spy(variables, images):
        shapes.add((images.shape, images.dtype))
        return bright(variables, images)

    run(forward=spy, batch_size=4)
    assert shapes == {((4, SIZE, SIZE, 1), np.dtype("float32"))}


def test_rows_hold_the_metrics_of_the_restored_prediction():
    data = dataset()
    for row, prediction in zip(
        run(data, forward=noisy).rows,
        predict(noisy, 1.0, Reader(data, "val", chain())),
        strict=True,
    ):
        truth = data[int(row["id"][-2:])]["mask"][..., 0] > 0
        expected = measure(truth, prediction.mask, margin=prediction.margin)
        assert {name: row[name] for name in TABLE} == expected
        assert row["truth_pixels"] == truth.sum()
        assert row["true_positives"] + row["false_negatives"] == truth.sum()
        assert row["true_positives"] + row["false_positives"] == prediction.mask.sum()
        total = sum(row[f"{t}_{s}s"] for t in ("true", "false") for s in ("positive", "negative"))
        assert total == truth.size


def test_a_jitted_network_with_read_only_outputs_will_do():
    forward = jax.jit(lambda threshold, x: jnp.concatenate([0 * x, x - threshold], -1))
    assert run(forward=forward, variables=jnp.float32(1.0)).rows == run().rows


def test_a_right_network_is_perfect_at_native_size_and_the_empty_image_counts():
    result = run()
    assert result.summary["empty_masks"] == {"both": 1, "truth": 0, "prediction": 0}
    assert result.summary["metrics"]["dice"]["mean"] == 1.0
    assert result.summary["metrics"]["hd95"]["mean"] == 0.0
    assert len(result.rows) == result.summary["n"] == 7


@pytest.mark.parametrize("shape", [(96, 96), (90, 128), (41, 30)])
def test_native_resolution_is_that_of_the_image(shape):
    rows = run(dataset(4, shape=shape)).rows
    assert {(row["height"], row["width"]) for row in rows} == {shape}
    assert {row["unseen_pixels"] for row in rows} == {0}
    rows = run(dataset(4, shape=shape), resolution="network").rows
    assert {(row["height"], row["width"]) for row in rows} == {(SIZE, SIZE)}


def test_what_a_crop_hides_is_counted_as_background_and_reported():
    masks = [np.zeros((600, 600), bool)]
    masks[0][5:15, :] = True  # outside of the centred 475 x 475 of the paper's crop
    masks[0][280:320, 100:500] = True
    data: Any = fakes.FakeDataset(masks)

    def everything(variables, images):
        return np.stack([np.zeros(images.shape[:3]), np.ones(images.shape[:3])], -1)

    (row,) = run(data, forward=everything, preprocessing=chain("paper")).rows
    assert row["unseen_pixels"] == 600**2 - 475**2
    assert row["predicted_pixels"] == 475**2
    assert row["false_negatives"] == 10 * 600
    # Where nothing was seen there is no probability to score.
    truth = masks[0][62 : 62 + 475, 62 : 62 + 475].mean()
    expected = truth * np.log1p(np.exp(-1)) + (1 - truth) * np.log1p(np.exp(1))
    assert row["ce"] == pytest.approx(expected)


def test_protocol_paper_gives_the_released_numbers_at_the_size_of_the_network():
    data, batch_size = dataset(5), 2
    result = run(data, forward=noisy, protocol="paper", resolution="network", batch_size=batch_size)
    truths = np.stack(data.masks)
    logits = np.stack(
        [
            np.stack([np.zeros((SIZE, SIZE)), p.margin], -1)
            for p in predict(noisy, 1.0, Reader(data, "val", chain(), "network"))
        ]
    )
    whole = paper_metrics(logits, truths)
    batches = [paper_metrics(logits[at : at + 2], truths[at : at + 2]) for at in (0, 2, 4)]
    for name in PAPER_TABLE:
        np.testing.assert_allclose([row[name] for row in result.rows], whole["per_image"][name])
        summary = result.summary["metrics"][name]
        assert summary["pooled"] == pytest.approx(float(whole["batch_pooled"][name]))
        assert summary["batch_pooled"] == pytest.approx(
            np.mean([batch["batch_pooled"][name] for batch in batches])
        )


def test_the_summary_holds_mean_interval_and_pooled_value_by_hand():
    data = dataset(6, patients=3)
    result = run(data, forward=noisy)
    rows, summary = result.rows, result.summary
    assert (summary["n"], summary["n_patients"], summary["split"]) == (6, 3, "val")
    assert summary["dataset"] == {"name": "fake/one", "fingerprint": "f1f2"}
    assert summary["interval"]["resampled"] == "patient"
    dice = summary["metrics"]["dice"]
    assert dice["mean"] == pytest.approx(np.mean([row["dice"] for row in rows]))
    assert dice["low"] < dice["mean"] < dice["high"]
    hits = sum(row["true_positives"] for row in rows)
    both = sum(row["truth_pixels"] + row["predicted_pixels"] for row in rows)
    assert dice["pooled"] == pytest.approx(2 * hits / both)
    assert summary["metrics"]["hd95"]["pooled"] is None
    assert summary["metrics"]["ce"]["pooled"] == pytest.approx(np.mean([r["ce"] for r in rows]))


def test_a_network_that_sees_nothing_gets_the_penalty_and_is_counted():
    def nothing(variables, images):
        return np.stack([np.ones(images.shape[:3]), np.zeros(images.shape[:3])], -1)

    result = run(forward=nothing)
    assert result.summary["empty_masks"] == {"both": 1, "truth": 0, "prediction": 6}
    assert result.summary["metrics"]["dice"]["mean"] == pytest.approx(1 / 7)
    assert result.summary["metrics"]["dice"]["pooled"] == 0.0
    assert result.summary["metrics"]["hd95"]["mean"] == pytest.approx(6 / 7 * np.hypot(SIZE, SIZE))
    assert "diagonal" in result.summary["empty_mask_rule"]


def test_only_the_metrics_asked_for_in_the_order_asked():
    result = run(metrics=("recall", "dice"))
    assert list(result.summary["metrics"]) == ["recall", "dice"]
    assert "hd95" not in result.rows[0]


def test_ids_choose_a_subset_and_its_order():
    rows = run(ids=["image03", "image00"]).rows
    assert [row["id"] for row in rows] == ["image03", "image00"]


def test_best_median_and_worst_are_kept_as_they_were_measured():
    result = run(forward=noisy)
    order = sorted(row["dice"] for row in result.rows)
    kept = [result.pictures[name] for name in ("worst", "worst_2", "worst_4", "median", "best")]
    assert [p.row["dice"] for p in kept] == [order[0], order[1], order[3], order[3], order[-1]]
    for picture in kept:
        assert TABLE["dice"](picture.truth, picture.prediction) == picture.row["dice"]
        assert (picture.image.shape, picture.image.dtype) == ((SIZE, SIZE), np.uint8)
    assert run(pictures=False).pictures == {}


def test_a_single_image_is_best_and_worst_at_once():
    result = run(ids=["image03"])
    assert set(result.pictures) == {"best", "median", "worst"}


def test_memory_is_bounded_reading_keeps_two_batches_ahead_at_most():
    data, seen = dataset(30), []

    def spy(variables, images):
        seen.append(len(data.reads))
        return bright(variables, images)

    run(data, forward=spy, batch_size=3, pictures=False)
    assert all(reads <= 3 * (batch + 2) for batch, reads in enumerate(seen))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["dize"]}, "metrics='dize' is not known, did you mean 'dice'"),
        ({"metrics": []}, "metrics is empty"),
        ({"protocol": "best"}, "config.protocol='best' is not known"),
        ({"resolution": "4k"}, "config.resolution='4k'.*Choose one of: native, network"),
        ({"ids": ["imageXX"]}, "holds no image 'imageXX'"),
        ({"ids": ["image00", "image00"]}, "listed twice"),
        ({"ids": []}, "no images to evaluate"),
        ({"metrics": ["hd95"], "protocol": "paper"}, "metrics='hd95' is not known"),
    ],
)
def test_bad_requests_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        run(**options)
    assert "\n" not in str(error.value)


def test_an_image_without_mask_is_named():
    data = dataset()
    original = data.__class__.__getitem__

    class Unlabelled(fakes.FakeDataset):
        def __getitem__(self, at):
            return original(self, at) | {"has_mask": at != 4}

    with pytest.raises(UserError, match="image04 has no mask"):
        run(Unlabelled(data.masks))


def test_a_diverged_network_is_named_not_scored():
    def diverged(variables, images):
        return np.full((*images.shape[:3], 2), np.nan)

    with pytest.raises(UserError, match="NaN or infinity for image image00"):
        run(forward=diverged)


def test_vessels_survive_the_way_to_a_smaller_network_and_back():
    data: Any = fakes.FakeDataset([vessel(1, shape=(128, 128), width=9)])
    (row,) = run(data).rows
    assert row["dice"] > 0.8
    assert row["height"] == 128


def test_prepared_images_give_the_same_rows(tiny_dataset, tmp_path, monkeypatch):
    fixed = preprocessing.create({"name": "fixed", "size": SIZE})
    options = {"forward": noisy, "preprocessing": fixed, "resolution": "native"}
    made = run(tiny_dataset, **options)
    ids = tiny_dataset.ids("val")[::-1]
    keep = partial(
        prepare, tiny_dataset, "val", fixed, with_masks=False, cache_dir=tmp_path, progress=False
    )
    kept, few = keep(ids=ids), keep(ids=ids[:1])
    with monkeypatch.context() as patched:
        patched.setattr(preprocessing.Preprocessing, "apply", None)  # nothing is prepared again
        assert run(tiny_dataset, prepared=kept, **options).rows == made.rows
    assert run(tiny_dataset, prepared=few, **options).rows == made.rows


def test_strata_and_calibration_are_in_rows_and_summary():
    data = dataset()
    result = run(data, forward=noisy)
    parts = []
    for row, prediction in zip(result.rows, predict(noisy, 1.0, Reader(data, "val", chain()))):
        parts.append(calibration.reliability(prediction.truth, prediction.margin))
        assert (row["brier"], row["ece"]) == (parts[-1].brier, parts[-1].ece)
        expected = calibre.columns(Pair(prediction.truth, prediction.mask))
        assert {name: row[name] for name in expected} == expected
    assert result.summary["calibration"] == calibration.pooled(parts).to_dict()
    assert sum(b["count"] for b in result.summary["calibration"]["bins"]) == 7 * SIZE * SIZE
    assert result.summary["calibre"] == calibre.summary(result.rows)
    assert result.rows[-1]["sensitivity_thin"] is None, "the last image is empty"
    watched = run(data, metrics=["dice"])
    assert "ece" not in watched.rows[0] and "calibre" not in watched.summary


def test_a_built_data_set_from_the_records_to_the_rows(tiny_dataset):
    result = run(tiny_dataset, forward=noisy, preprocessing=chain("fixed"))
    assert [row["id"] for row in result.rows] == tiny_dataset.ids("val")
    assert [row["patient"] for row in result.rows] == tiny_dataset.patients("val")
    assert result.summary["interval"]["resampled"] == "patient"
    assert result.summary["n_patients"] == len(set(tiny_dataset.patients("val")))
    assert all(np.isfinite([row[name] for name in TABLE]).all() for row in result.rows)
