"""The data set that a config names, divided as it says."""

import importlib
import pickle

import numpy as np
import pytest

from cmunet_jax.data import datasets, preprocessing, source
from tfds_angio.errors import UserError


def options(dataset, **changes):
    config = importlib.import_module("configs.common").data("angio_synthetic", "tiny")
    config.dir = str(dataset.directory.parents[2])
    config.update(changes)
    return config


def test_the_default_is_as_built(tiny_dataset):
    opened = datasets.open_or_build(options(tiny_dataset))
    assert (opened.splits, opened.sizes) == ("built", tiny_dataset.sizes)
    old = options(tiny_dataset)
    del old.splits  # a config of before
    assert datasets.open_or_build(old).sizes == tiny_dataset.sizes


@pytest.mark.parametrize("progress", [True, False])
def test_whether_a_build_shows_a_bar_is_passed_on(tiny_dataset, monkeypatch, progress):
    asked = []

    def build(name, **how):
        asked.append(how["progress"])
        return tiny_dataset

    monkeypatch.setattr(datasets, "build", build)
    datasets.open_or_build(options(tiny_dataset), progress=progress)
    assert asked == [progress]


@pytest.mark.parametrize("rule", ["holdout:8", "paper"])
def test_examples_are_those_of_their_ids_and_travel(tiny_dataset, rule):
    view = datasets.open_or_build(options(tiny_dataset, splits=rule))
    for split in (*view.sizes, "+".join(view.sizes)):
        examples = pickle.loads(pickle.dumps(view.source(split)))
        ids = view.ids(split)
        assert len(examples) == len(ids)
        for i in (0, len(ids) // 2, -1):
            assert examples[i]["id"] == ids[i]
            assert examples[i]["patient"] == view.patients(split)[i]
        with pytest.raises(IndexError):
            examples[len(ids)]
        assert [e["id"] for e in examples.__getitems__([1, 0])] == [ids[1], ids[0]]


def test_prepared_images_are_those_of_the_split(tiny_dataset, tmp_path):
    """The cache tells divisions apart: the same name is not the same images."""
    chain = preprocessing.create({"name": "fixed", "size": 64})
    view = datasets.open_or_build(options(tiny_dataset, splits="holdout:8"))
    kept = {}
    for dataset, split in ((tiny_dataset, "train"), (view, "train"), (view, "holdout")):
        rows = source.prepare(
            dataset, split, chain, workers=0, progress=False, cache_dir=tmp_path, ids=None
        )
        assert rows.ids == dataset.ids(split)
        if dataset is tiny_dataset:
            kept = dict(zip(rows.ids, rows.code))
        for name, code in zip(rows.ids, rows.code):
            np.testing.assert_array_equal(code, kept[name])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"fold": 1}, "config.a.fold=1 says which fold .* config.a.folds=0"),
        ({"labels": 4, "folds": 5}, "folds=5"),
        ({"folds": 3, "fold": 3}, "fold=3"),
        ({"labels": 10_000}, "config.a.labels=10000 is more than"),
    ],
)
def test_folds_and_labels_out_of_range(tiny_dataset, chosen, message):
    asked = {"labels": 0, "draw": 0, "folds": 0, "fold": 0} | chosen
    with pytest.raises(UserError, match=message):
        datasets.labelled_subset(tiny_dataset, **asked, prefix="a.")


@pytest.mark.parametrize(
    ("split", "hint"),
    [("holdout", "config.data.splits, e.g. holdout:100"), ("fold", "config.folds, e.g. 3")],
)
def test_a_split_that_must_be_made_says_how(tiny_dataset, split, hint):
    with pytest.raises(UserError, match=hint):
        datasets.size_of(tiny_dataset, split, key="eval_split")
