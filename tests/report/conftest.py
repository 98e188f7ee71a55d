"""One small run, written once: pre-training, two arms, their evaluations and overlays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmunet_jax.report import Arm, cards, write_study
from cmunet_jax.report.study import Study, read_study
from tests.report import fake_sweep, runs

NAMES = ("CM-UNet pre-training, 18 labels", "from scratch, 18 labels")


class Case:
    """Folders of a run, and the arguments of `report.write` for it."""

    def __init__(self, root: Path):
        self.root = root
        self.page = root / "report.html"
        self.pretrain = root / "pretrain"

    def arguments(self, **changes: Any) -> dict[str, Any]:
        arms = [
            Arm(name, self.root / key, self.root / key / "evaluation")
            for name, key in zip(NAMES, ("finetune", "scratch"))
        ]
        base = {"title": "A run", "pretrain": self.pretrain, "arms": arms, "facts": {}}
        return base | changes


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A run in which pre-training helps; do not write into it."""
    case = Case(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(0)
    pictures = {
        name: rng.random((4, 16, 16, 1), np.float32)
        for name in ("view", "masked", "reconstruction", "error")
    }
    runs.write_training(
        case.pretrain,
        scalars=runs.pretraining_scalars(),
        pictures=pictures,
        stage="pretrain",
        objective={"name": "cmunet", "preset": "fixed"},
    )
    quality = rng.uniform(0.5, 0.8, 12)
    for key, gain in (("finetune", 0.1), ("scratch", 0.0)):
        start = str(case.pretrain) if key == "finetune" else ""
        runs.write_training(
            case.root / key, scalars=runs.finetuning_scalars(0.7 + gain), init_from=start
        )
        found = runs.evaluation(quality + gain, patients=8)
        runs.write_evaluation(case.root / key / "evaluation", found, overlays=key == "finetune")
    return case


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Six methods, the paper's protocol and one change at a time, read from invented sweeps."""
    root = tmp_path_factory.mktemp("study")
    folders = [
        fake_sweep.build_fair(root, labels=(18, 500), draws=(0, 1), failed=""),
        fake_sweep.build_paper(root),
        fake_sweep.build_defects(root, draws=(0, 1)),
    ]
    return read_study(folders, title="Six methods at equal budget", resamples=200)


@pytest.fixture(scope="session")
def study_pages(whole: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of it."""
    root = tmp_path_factory.mktemp("pages")
    texts = {"model_card": cards.model_card(whole), "claim": cards.answered(whole)}
    return {"study": write_study(root / "study.html", whole, **texts)}


@pytest.fixture
def copied(written: Case, tmp_path: Path) -> Case:
    """The same run to be damaged."""
    shutil.copytree(written.root, tmp_path / "run")
    return Case(tmp_path / "run")


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[str], str]], None]:
    """Changes the text of a file."""

    def change(path: Path, how: Callable[[str], str]) -> None:
        path.write_text(how(path.read_text()))

    return change
