"""Windows hold every pixel, keep the aspect, and blend without a seam."""

import numpy as np
import pytest

from cmunet_jax.data import preprocessing
from cmunet_jax.predict import windows
from cmunet_jax.predict.windows import Canvas, Window
from tests.data.fakes import angiogram
from tests.predict.fakes import chain
from tfds_angio.errors import UserError

PAPER, FIXED = chain("paper", 64), chain("fixed", 64)


@pytest.mark.parametrize("kind", [PAPER, FIXED])
@pytest.mark.parametrize(
    "shape", [(15, 15), (1, 1), (512, 512), (4096, 4096), (16, 4096), (4096, 3), (700, 512)]
)
def test_tiles_hold_every_pixel_and_are_few(shape, kind):
    plan = windows.plan(*shape, kind, fit="tiles")
    seen = np.zeros(shape, np.uint8)
    for window in plan:
        seen[window.rows, window.columns] += 1
        assert not window.whole
    assert seen.all() and len(plan) <= 150


def test_neighbours_overlap_by_a_quarter():
    plan = windows.plan(512, 3000, PAPER, fit="tiles")
    starts = sorted({window.columns.start for window in plan})
    assert max(np.diff(starts)) <= 0.75 * 475 and starts[-1] + 475 == 3000


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        (PAPER, (475, 475), "whole"),
        (PAPER, (15, 15), "whole"),
        (PAPER, (512, 512), "tiles"),  # a centre crop would never see the rim
        (PAPER, (300, 400), "tiles"),
        (FIXED, (4096, 4096), "whole"),
        (FIXED, (512, 1024), "whole"),
        (FIXED, (512, 1025), "tiles"),
    ],
)
def test_auto_is_whole_where_training_saw_whole_frames(kind, shape, expected):
    plan = windows.plan(*shape, kind, fit="auto")
    assert plan[0].whole == (expected == "whole")
    assert len(plan) == 1 if expected == "whole" else len(plan) > 1


def test_the_side_of_windows_can_be_chosen_and_an_unknown_fit_is_refused():
    assert {w.rows.stop - w.rows.start for w in windows.plan(90, 80, FIXED, fit="tiles", side=30)}
    with pytest.raises(UserError, match="config.fit"):
        windows.plan(9, 9, FIXED, fit="streched")


def test_a_window_is_prepared_as_an_image_of_its_own():
    frame = angiogram(512, 512)
    first = windows.plan(512, 512, PAPER, fit="auto")[0]
    seen = windows.prepare(frame, first, PAPER)
    expected = PAPER.apply(frame[:475, :475])
    np.testing.assert_array_equal(seen.float(), expected.float())


@pytest.mark.parametrize("kind", [PAPER, FIXED])
@pytest.mark.parametrize("shape", [(15, 15), (40, 300), (300, 40), (256, 1)])
def test_every_window_comes_back_to_its_own_pixels(shape, kind):
    """What the network says of a place returns to that place, also through padding."""
    frame = angiogram(*shape)
    canvas = Canvas(*shape, len(plan := windows.plan(*shape, kind, fit="tiles")))
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    for window in plan:
        prepared = windows.prepare(frame, window, kind)
        g = prepared.geometry
        # a network that says where in the native frame each of its pixels lies
        places = (np.arange(64, dtype=np.float32) + 0.5) * g.side / 64 - 0.5
        size = window.rows.stop - window.rows.start, window.columns.stop - window.columns.start
        top = (g.side - size[0]) // 2 if isinstance(kind.options, preprocessing.PaperOptions) else 0
        top = -top if top else g.top
        said = np.repeat((places + top + window.rows.start)[:, None], 64, 1)
        canvas.add(window, windows.restore(said, prepared, window, kind))
    total, weight = canvas._sum, canvas._weight
    got = total if weight is None else total / weight
    inner = slice(2, -2) if shape[0] > 8 else slice(None)
    np.testing.assert_allclose(got[inner], rows[inner], atol=0.6)


def test_overlapping_windows_that_agree_leave_no_seam():
    canvas = Canvas(50, 80, 2)
    for columns in (slice(0, 50), slice(30, 80)):
        canvas.add(Window(slice(0, 50), columns), np.full((50, 50), 0.7, np.float32))
    np.testing.assert_allclose(canvas.probability(), 1 / (1 + np.exp(-0.7)), rtol=1e-6)


def test_windows_that_disagree_are_blended_smoothly():
    canvas = Canvas(50, 80, 2)
    canvas.add(Window(slice(0, 50), slice(0, 50)), np.full((50, 50), -2, np.float32))
    canvas.add(Window(slice(0, 50), slice(30, 80)), np.full((50, 50), 2, np.float32))
    row = canvas.probability()[25]
    assert np.abs(np.diff(row)).max() < 0.1 and (np.diff(row) >= 0).all()
    assert row[:30].max() == row[0] and row[50:].min() == row[-1]


def test_what_was_not_seen_is_no_artery():
    margin = np.full((4, 4), 3, np.float32)
    margin[0] = np.nan
    canvas = Canvas(4, 4, 1)
    canvas.add(Window(slice(0, 4), slice(0, 4), whole=True), margin)
    assert (canvas.probability()[0] == 0).all() and (canvas.probability()[1:] > 0.9).all()


def test_extreme_logits_are_probabilities():
    canvas = Canvas(1, 2, 1)
    canvas.add(Window(slice(0, 1), slice(0, 2)), np.array([[-1e4, 1e4]], np.float32))
    np.testing.assert_array_equal(canvas.probability(), [[0, 1]])
