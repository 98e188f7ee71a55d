"""What was seen is no test; what a protocol allows is counted and said."""

import pytest

from cmunet_jax.stages import provenance
from tfds_angio import resplit
from tfds_angio.errors import UserError


def trained(dataset, ids, *, masks=()):
    """The stored config of a checkpoint that has seen some images of a data set."""
    group_of = dict(zip(dataset.ids("train"), dataset.groups("train")))
    seen = {
        "ids": sorted(ids),
        "masks": sorted(masks),
        "patients": sorted({group_of[i] for i in ids if group_of.get(i)}),
    }
    return {"provenance": {"seen": {dataset.name: seen}}}


@pytest.fixture(scope="module")
def folded(tiny_dataset):
    """(data set with a fold, ids left to train on)."""
    return resplit.with_fold(tiny_dataset, tiny_dataset.labelled_ids(12, draw=0), folds=3, fold=0)


def test_nothing_seen_is_nothing_to_report(tiny_dataset):
    nothing = {"images": 0, "patients": 0, "note": ""}
    assert provenance.check_unseen({}, tiny_dataset, "val") == nothing
    everything = trained(tiny_dataset, tiny_dataset.ids("train"))
    assert provenance.check_unseen(everything, tiny_dataset, "val") == nothing


def test_a_pretraining_may_have_seen_a_fold_without_its_masks(folded):
    dataset, left = folded
    pool = [*dataset.ids("train"), *dataset.ids("fold")]
    overlap = provenance.check_unseen(trained(dataset, pool, masks=left), dataset, "fold")
    assert overlap["images"] == dataset.sizes["fold"]
    assert "without their masks" in overlap["note"]


def test_a_fold_whose_masks_or_whose_patients_were_learnt_is_refused(folded):
    dataset, left = folded
    one = dataset.ids("fold")[:1]
    with pytest.raises(UserError, match="1 images and"):
        provenance.check_unseen(trained(dataset, one, masks=one), dataset, "fold")
    whole = resplit.resplit(dataset, "built")
    patient = dataset.groups("fold")[0]
    same = [i for i, g in zip(whole.ids("train"), whole.groups("train")) if g == patient]
    if not same:  # all images of that patient are in the fold
        pytest.skip("the fold holds all images of its first patient")
    with pytest.raises(UserError, match="0 images and 1 patients"):
        provenance.check_unseen(trained(dataset, same, masks=same), dataset, "fold")


def test_runs_count_as_patients_where_these_are_unknown(tiny_dataset):
    view = resplit.hold_out(tiny_dataset, 8)
    first, second = view.ids("train")[0], view.ids("holdout")[0]
    view._splits = {
        split: columns | {"patients": [""] * len(columns["ids"])}
        for split, columns in view._splits.items()
    }
    view._groups = {first: "run of x", second: "run of x"}
    with pytest.raises(UserError, match="0 images and 1 patients"):
        provenance.check_unseen(trained(view, [first]), view, "holdout")
