"""A process that only saves, killed at random: a completed save is never lost nor half."""

import pytest

from tests.faults import kills
from tests.train.test_damage import check_kills

pytestmark = pytest.mark.faults


def test_no_completed_save_is_lost(tmp_path, caplog):
    check_kills(tmp_path, kills.KILLS["checkpoint"])
    assert caplog.records == []
