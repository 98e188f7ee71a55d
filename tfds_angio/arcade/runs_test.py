"""Runs of which several images stay are recorded, and held out whole."""

import cv2
import numpy as np
import pytest

from tfds_angio import resplit
from tfds_angio.arcade import dummy_data
from tfds_angio.base import build


def recompressed(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Train images 1…6 and a copy of 2; unlabelled: a copy of 1, a single one and its copy."""
    root = tmp_path_factory.mktemp("source") / "arcade"
    for part, seeds in (("train", range(6)), ("val", range(10, 12))):
        pictures = {str(i + 1): dummy_data.angiogram(seed) for i, seed in enumerate(seeds)}
        drawn = {str(i + 1): dummy_data.segments(seed) for i, seed in enumerate(seeds)}
        if part == "train":
            pictures["7"], drawn["7"] = recompressed(pictures["2"]), drawn["2"][:1]
        dummy_data.write_part(root, "syntax", part, pictures, drawn)
    pool = {"1": dummy_data.angiogram(0), "2": dummy_data.angiogram(50)}
    pool |= {"3": recompressed(pool["2"]), "4": dummy_data.angiogram(51)}
    colour = {k: np.repeat(v[..., None], 3, 2) for k, v in pool.items()}
    dummy_data.write_part(root, "stenosis", "train", colour, {})
    return root.parent


def made(source, folder, **options):
    return build(
        "arcade", data_dir=folder, source=source, options=options, workers=0, progress=False
    )


def test_no_group_is_left_where_all_repeats_were_removed(source, tmp_path):
    dataset = made(source, tmp_path)
    assert dataset.knows_groups and dataset.sizes == {"train": 6, "val": 2, "unlabelled": 2}
    assert set(dataset.groups("train+val+unlabelled")) == {""}


def test_runs_that_stay_are_groups(source, tmp_path):
    dataset = made(source, tmp_path, frame_correlation=1.1)  # no frame is taken for a repeat
    pool = "train+unlabelled"
    group_of = dict(zip(dataset.ids(pool), dataset.groups(pool)))
    assert group_of["syntax_train_7"] == group_of["syntax_train_2"] != ""
    assert group_of["stenosis_train_1"] == group_of["syntax_train_1"] != ""
    assert group_of["stenosis_train_2"] == group_of["stenosis_train_3"] != ""
    assert len(set(group_of.values()) - {""}) == 3
    assert group_of["stenosis_train_4"] == group_of["syntax_train_5"] == ""
    for n in range(1, dataset.sizes["train"]):
        view = resplit.hold_out(dataset, n)
        held = set(view.ids("holdout"))
        assert ("syntax_train_7" in held) == ("syntax_train_2" in held)
        assert ("stenosis_train_1" in view.left_out) == ("syntax_train_1" in held)
        assert ("stenosis_train_1" in view.ids("unlabelled")) != ("syntax_train_1" in held)
