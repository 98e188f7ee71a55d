"""Invented sweeps, written once; copies to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cmunet_jax.report.study import Study, read_study
from tests.report import fake_sweep
from tests.report.fake_sweep import Built

RESAMPLES = 1000


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The three sweeps; do not write into them."""
    return fake_sweep.build(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="session")
def study(built: Built) -> Study:
    return read_study(built.all, resamples=RESAMPLES)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scratch and CM-UNet, 18 and 500 labels, two draws, no search; do not write into it."""
    return fake_sweep.build_fair(
        tmp_path_factory.mktemp("small"),
        methods=("scratch", "cmunet"),
        labels=(18, 500),
        draws=(0, 1),
        search=False,
        failed="",
    )


@pytest.fixture
def copied(small: Path, tmp_path: Path) -> Path:
    """The small sweep, to be damaged."""
    shutil.copytree(small, tmp_path / "fair")
    return tmp_path / "fair"
