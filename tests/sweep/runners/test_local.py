"""The runner that works itself: what it tells at the end."""

import ml_collections
import pytest

from cmunet_jax.sweep import child
from cmunet_jax.sweep.runners import local
from cmunet_jax.sweep.store import StorageError
from tests.conftest import ROOT
from tests.sweep import plans


def test_a_full_disk_ends_with_the_table_of_what_is_done_and_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(child, "MODULE", "tests.sweep.fake_trial")
    monkeypatch.chdir(ROOT)
    plan = [
        plans.trial("a"),
        plans.trial("b", errors=["exit 2"]),
        plans.trial("c", errors=["exit 74"]),
    ]
    config = ml_collections.ConfigDict(
        {
            "data": {"name": plans.DATA["name"]},
            "fingerprint": plans.DATA["fingerprint"],
            "retry_failed": False,
            "scratch": str(tmp_path),
            "lease_seconds": 30.0,
            "max_attempts": 1,
            "keep": "needed",
        }
    )
    with pytest.raises(StorageError, match="trial c stopped, to be continued"):
        local.run(plan, config, tmp_path / "sweep")
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "fine-tuning" in line]
    assert [part.strip() for part in row.split("│")[2:-1]] == ["1", "0", "1", "1", "0"]
    assert "failed: trial b" in said
