"""Two runs of one set of inputs, and a viewer that compares them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmunet_jax.viewer import runs
from tests.viewer import fake_run
from tests.viewer.client import Viewer, viewing

THIN = 6.0  # px: how wide the second checkpoint draws what the first draws 8 px wide


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return (
        fake_run.build(root / "first"),
        fake_run.build(root / "second", width=THIN, digest="b" * 64),
    )


@pytest.fixture(scope="session")
def standing(
    two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Viewer]:
    """One for all that only asks."""
    with viewing(runs.of_runs(*two_runs), tmp_path_factory.mktemp("labels")) as running:
        yield running


@pytest.fixture
def viewer(two_runs: tuple[Path, Path], tmp_path: Path) -> Iterator[Viewer]:
    with viewing(runs.of_runs(*two_runs), tmp_path / "labels") as running:
        yield running
