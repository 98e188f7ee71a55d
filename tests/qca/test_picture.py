"""The labels of the annotated picture: each can be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.transforms import Bbox

from cmunet_jax import qca
from cmunet_jax.qca import picture
from tests.qca import vessels

SHAPE = (200, 240)


@pytest.fixture(scope="module")
def analysis():
    narrow = vessels.narrowing(12.0, percent=55, at=0.5, spread=0.05)
    t = vessels.tube(angle=0.0, length=140, diameter=narrow, middle=(100, 120))
    found = qca.analyse(vessels.draw(t, shape=SHAPE), spacing=(0.3, 0.3))
    assert found.segments[0].percent_diameter_stenosis > picture.LEAST_STENOSIS
    return found


def marked(analysis, places):
    """The analysis with copies of its stenosis at other places, (row, column) px."""
    (one,) = analysis.segments
    moved = [
        replace(one, id=n, points=one.points + (np.array(place) - one.points[one.stenosis_at]))
        for n, place in enumerate(places, 1)
    ]
    # The least diameter beside the stenosis: another label at nearly the same point.
    last = replace(moved[-1], minimal_at=one.stenosis_at + 1)
    return replace(analysis, segments=(*moved[:-1], last), minimal=len(moved))


@pytest.mark.parametrize(
    "places",
    [
        [(100, 120)],
        [(100, 120), (101, 122)],
        [(100, 120), (100, 120), (104, 120), (100, 126)],
        [(2, 2), (3, 3)],
        [(2, 237), (2, 230)],
        [(197, 2), (197, 12)],
        [(197, 237), (190, 237), (180, 236)],
    ],
)
def test_labels_meet_no_other_and_stay_within_the_picture(analysis, places, tmp_path, monkeypatch):
    boxes, within, real = [], [], picture._label

    def noted(axes, *rest):
        boxes.append(real(axes, *rest))
        within.append(Bbox(axes.bbox.get_points()))
        return boxes[-1]

    monkeypatch.setattr(picture, "_label", noted)
    qca.draw(np.zeros(SHAPE, np.uint8), marked(analysis, places), tmp_path / "a.png")
    assert len(boxes) == len(places) + 1
    for number, (box, room) in enumerate(zip(boxes, within, strict=True)):
        assert box.width > 30 and box.height > 8
        assert room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
        assert not any(Bbox.intersection(box, other) for other in boxes[:number])


def test_where_there_is_no_room_a_picture_is_made_all_the_same(tmp_path):
    mask = np.zeros((14, 400), bool)
    mask[3:11, 5:395] = True
    mask[3:5, 195:205] = mask[9:11, 195:205] = False
    found = qca.analyse(mask, spacing=None)
    assert found.segments[0].percent_diameter_stenosis > picture.LEAST_STENOSIS
    qca.draw(np.zeros(mask.shape, np.uint8), found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
