"""What a reference diameter cannot be, and that what an artery can be keeps its percentage."""

from __future__ import annotations

import numpy as np
import pytest

from cmunet_jax import qca
from cmunet_jax.qca.stenosis import stenosis
from tests.qca import vessels


def stenosed(line, *, at):
    """Positions and diameters [K] of a vessel of healthy diameters `line`, half of one lost."""
    x = np.arange(len(line), dtype=float)
    return x, line * (1 - 0.5 * np.exp(-0.5 * ((x - at) / 6) ** 2))


@pytest.mark.parametrize("unit", [1.0, 0.2], ids=["px", "mm"])
@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize(("slope", "may"), [(0.02, True), (0.09, True), (0.12, False)])
def test_a_reference_tapers_no_more_than_an_artery(slope, may, way, unit):
    x, d = stenosed((6 + slope * np.arange(200.0))[::way], at=60)
    found = stenosis(unit * x, unit * d)
    if may:
        assert found.why_not is None and abs(found.percent - 50) < 4
        return
    assert found.percent is None and found.at is None and np.isnan(found.reference).all()
    assert "over 10 % of a diameter per diameter of length" in found.why_not


@pytest.mark.parametrize("at", [60, 100, 140])
@pytest.mark.parametrize("way", [1, -1])
def test_a_narrowing_does_not_move_its_reference_wherever_it_is(at, way):
    healthy = (6 + 0.05 * np.arange(200.0))[::way]
    found = stenosis(*stenosed(healthy, at=at))
    np.testing.assert_allclose(found.reference, healthy, rtol=0.02)
    assert abs(found.percent - 50) < 1.5


@pytest.mark.parametrize("unit", [1.0, 0.2], ids=["px", "mm"])
@pytest.mark.parametrize(("diameters", "may"), [(15, True), (25, False)])
def test_a_reference_is_measured_nearby(diameters, may, unit):
    d = np.full(300 + 10 * diameters, 10.0)
    d[150:-150] = 4.0
    found = stenosis(unit * np.arange(float(len(d))), unit * d)
    if may:
        assert found.why_not is None and abs(found.percent - 60) < 1
    else:
        assert found.percent is None and np.isnan(found.reference).all()
        assert "wider than all that was measured within 10 diameters" in found.why_not


def test_a_reference_does_not_outgrow_its_vessel():
    # Rises by less than the bound, but to 24 at the end of a vessel that is nowhere over 19 wide.
    x, d = stenosed(np.minimum(8 + 0.08 * np.arange(200.0), 19), at=70)
    found = stenosis(x, d)
    assert found.percent is None and "wider than all that was measured" in found.why_not


def test_a_vessel_that_swells_and_shrinks_has_no_percentage():
    # As in a frame whose mask went from one artery into another: the line went from 8 to 31 px.
    swelling = ([0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 1], [10, 9.5, 8.5, 5.5, 6.5, 14, 24, 17])
    t = vessels.tube(
        angle=0.4, length=125, diameter=lambda x: np.interp(x, *swelling), middle=(75, 75)
    )
    (segment,) = qca.analyse(vessels.draw(t, shape=(150, 150)), spacing=(0.3, 0.3)).segments
    assert segment.percent_diameter_stenosis is None and segment.stenosis_at is None
    assert "no reference" in segment.why_no_stenosis
    assert np.isnan(segment.reference_px).all() and np.isnan(segment.reference_mm).all()
    assert segment.minimal_at is not None  # the diameters stay
