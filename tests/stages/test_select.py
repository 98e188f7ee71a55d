"""The select stage on real checkpoints: a data set, a folder, and fine-tuning on its choice."""

import csv
import dataclasses
import importlib
import json
from collections import Counter

import cv2
import jax
import numpy as np
import pytest

from cmunet_jax import objectives
from cmunet_jax.config import from_dict
from cmunet_jax.stages import encode
from cmunet_jax.stages import evaluate as evaluate_stage
from cmunet_jax.stages import select as select_stage
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint, sharding
from tests.data.fakes import angiogram
from tests.imaging import xa
from tests.stage_helpers import tiny
from tfds_angio.errors import UserError

K = 8  # as many as a batch of the tiny fine-tuning, whose compiled step is shared


@pytest.fixture(scope="module")
def pretrained(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    assert train_stage.run(tiny("pretrain", tiny_dataset, 2), folder / "pretrain") == 0
    return folder / "pretrain"


def configured(run, **changes):
    config = importlib.import_module("configs.select").get_config()
    config.checkpoint, config.k, config.batch_size = str(run), K, 8
    config.data.workers = 1
    config.update_from_flattened_dict(changes)
    return config


def select(run, target, **changes):
    """(rows of the list, record) of a selection."""
    assert select_stage.run(configured(run, **changes), target) == 0
    with (target / "selection.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((target / "selection.json").read_text())


def test_a_data_set_is_chosen_from_and_learnt_from(pretrained, tiny_dataset, tmp_path, capsys):
    """Choose among train as if it had no masks, fine-tune on exactly these, evaluate."""
    among = {"split": "train", "masks": "ignore", "per_patient": 2}
    rows, record = select(pretrained, tmp_path / "a", **among)
    ids = [row["id"] for row in rows]
    assert record["ids"] == ids and len(set(ids)) == K
    patients = Counter(row["patient"] for row in rows)
    assert max(patients.values()) == 2
    assert set(ids) <= set(tiny_dataset.ids("train"))
    loaded = checkpoint.load(pretrained)
    assert record["checkpoint"]["digest"] == loaded.digest
    assert record["pool"]["fingerprint"] == tiny_dataset.fingerprint
    assert record["features"] == {"levels": "bottleneck", "numbers": 16 * 4}
    assert record["distance"]["random_lowest"] <= record["distance"]["random"]
    for row in rows:
        assert cv2.imread(str(tmp_path / "a" / row["path"]), -1).ndim == 2
    assert capsys.readouterr().out.strip().endswith("selection.csv")

    again, _ = select(pretrained, tmp_path / "b", **among)
    assert again == rows

    listed = str(tmp_path / "a" / "selection.csv")
    changes = {"label_ids": listed, "labels": 0, "init_from": str(pretrained)}
    tuned = tiny("finetune", tiny_dataset, 2, **changes)
    assert train_stage.run(tuned, tmp_path / "tuned") == 0
    seen = checkpoint.load(tmp_path / "tuned").config["provenance"]["seen"]
    assert seen[tiny_dataset.name]["masks"] == sorted(ids)
    evaluation = importlib.import_module("configs.evaluate").get_config()
    evaluation.checkpoint, evaluation.overlays = str(tmp_path / "tuned"), False
    assert evaluate_stage.run(evaluation, tmp_path / "evaluation") == 0
    facts = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["training"]
    assert facts["label_ids"]["path"] == listed and facts["label_ids"]["images"] == K

    # What it starts from may be labelled already, and the list goes on with others.
    more, record = select(tmp_path / "tuned", tmp_path / "c", labelled=listed, k=3, **among)
    assert record["labelled"] == sorted(ids)
    assert not {row["id"] for row in more} & set(ids)
    assert max((patients + Counter(row["patient"] for row in more)).values()) == 2
    assert record["checkpoint"]["objective"] == "scratch"

    # A run is not continued on another list of the same name.
    header, *before = (tmp_path / "a" / "selection.csv").read_text().splitlines()
    after = (tmp_path / "c" / "selection.csv").read_text().splitlines()[1:]
    other = [header, *before[: len(before) - len(after)], *after]
    (tmp_path / "a" / "selection.csv").write_text("\n".join(other) + "\n")
    with pytest.raises(UserError, match="other images than config.label_ids"):
        train_stage.run(tuned, tmp_path / "tuned")


def test_a_folder_with_files_that_cannot_be_read(pretrained, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(9):
        cv2.imwrite(str(folder / f"p{at // 2}_{at}.png"), angiogram(64, 80, at))
    (folder / "p7_bad.png").write_bytes(b"")
    target = tmp_path / "to"
    config = configured(pretrained, input=str(folder), pattern="^(?P<patient>[^_]+)_", k=4)
    config.method = "coverage"
    config.k = 500
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="5 images .*at most 5") as e,
    ):
        patch.setattr(select_stage.features, "embed", None)  # refused before the network runs
        select_stage.run(config, target)
    assert "1 cannot be read (the first is p7_bad: empty file)" in str(e.value)
    config.k = 4
    assert select_stage.run(config, target) == select_stage.EXIT_INCOMPLETE == 3
    printed = capsys.readouterr().out
    assert "p7_bad: empty file: left out" in " ".join(printed.split())
    with (target / "selection.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["patient"] for row in rows}) == 4
    assert all(row["path"] == str(folder / f"{row['id']}.png") for row in rows)
    record = json.loads((target / "selection.json").read_text())
    assert record["failed"] == [{"id": "p7_bad", "reason": "empty file"}]
    assert set(record["sha256"]) == {row["id"] for row in rows}


def test_a_folder_of_dicoms_leaves_no_name_behind(pretrained, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(4):
        cv2.imwrite(str(folder / f"p{at}_x.png"), angiogram(64, 80, at))
    frames = xa.run(3, 40, 48)
    xa.write(folder, frames, name="IM000001", elements={"BurnedInAnnotation": "NO"})
    changes = {"input": str(folder), "pattern": "^(?P<patient>[^_]+)_", "k": 5}
    rows, record = select(pretrained, tmp_path / "to", **changes)
    assert f"{folder / 'IM000001'} -> dicom-" in capsys.readouterr().out
    (run,) = (row for row in rows if row["id"].startswith("dicom-"))  # at most one of a patient
    assert cv2.imread(str(tmp_path / "to" / run["path"]), -1).shape == frames.shape[1:]
    assert run["patient"] == run["id"][:18] and record["config"]["input"] == ""
    for path in (tmp_path / "to").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(word.encode() in data for word in (*xa.IDENTIFIERS, "IM000001"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 5000}, "config.k=5000 is more than the"),
        ({"split": "train"}, "images are labelled"),
        ({"labelled": "{tmp}/list"}, "config.labelled=.*'nobody'"),
        ({"split": "tests"}, "config.split='tests' is empty|no split 'tests'"),
        ({"method": "best"}, "config.method='best'"),
        ({"features": "top"}, "config.features='top'"),
        ({"masks": "none"}, "config.masks='none'"),
        ({"input": "{tmp}/nowhere"}, "is no folder"),
        ({"checkpoint": "{tmp}/nowhere"}, "no checkpoint at"),
        ({"weights": "both"}, "config.weights='both'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(pretrained, tmp_path, changes, message):
    (tmp_path / "list").write_text("nobody\n")
    changes = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message) as error:
        select_stage.run(configured(pretrained, **changes), tmp_path / "to")
    assert "\n" not in str(error.value) and not (tmp_path / "to").exists()


def test_a_selection_is_not_overwritten(pretrained, tmp_path):
    (tmp_path / "selection.csv").write_text("mine")
    with pytest.raises(UserError, match="config.overwrite=True"):
        select_stage.run(configured(pretrained), tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["nobody"], "1 of its 1 images .* 'nobody' is not in it"),
        (["{test}"], "1 of its 1 images .* is in its split test"),
        (["{train}"], "config.labels=2 is more than the 1 labelled images of .*list"),
    ],
)
def test_a_list_that_cannot_be_learnt_from(tiny_dataset, tmp_path, labels, message):
    known = {split: tiny_dataset.ids(split)[0] for split in ("train", "test")}
    (tmp_path / "list").write_text("\n".join(labels).format(**known))
    config = tiny(
        "finetune", tiny_dataset, 2, label_ids=str(tmp_path / "list"), labels=2, batch_size=1
    )
    with pytest.raises(UserError, match=message):
        train_stage.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_every_method_has_an_encoder(name, tiny_dataset, pretrained, monkeypatch):
    """As `encode.restore` looks for it, in the variables that a run of the method would store."""
    stage = "finetune" if name == "scratch" else "pretrain"
    config = tiny(stage, tiny_dataset, 2, **({} if name == "scratch" else {"objective": name}))
    objective = objectives.create(config)
    made = jax.eval_shape(lambda key: objective.init(key, (64, 64, 1)), jax.random.key(0))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made)
    loaded = dataclasses.replace(
        checkpoint.load(pretrained),
        params=zeros.params,
        batch_stats=zeros.batch_stats,
        config=json.loads(config.to_json_best_effort()),
    )
    monkeypatch.setattr(encode.checkpoint, "load", lambda *args, **kwargs: loaded)
    restored = encode.restore("x", step="latest", weights="raw", mesh=sharding.create_mesh())
    assert from_dict(restored.loaded.config).objective.name == name

    del zeros.params["encoder"]
    with pytest.raises(UserError, match="holds no encoder"):
        encode.restore("x", step="latest", weights="raw", mesh=sharding.create_mesh())


def test_an_encoder_of_another_width(pretrained, monkeypatch):
    loaded = checkpoint.load(pretrained)
    config = json.loads(json.dumps(loaded.config))
    config["model"]["width"] = 6
    changed = dataclasses.replace(loaded, config=config)
    monkeypatch.setattr(encode.checkpoint, "load", lambda *args, **kwargs: changed)
    with pytest.raises(UserError, match="no U-Net encoder of width 6: .* expected"):
        encode.restore("x", step="latest", weights="raw", mesh=sharding.create_mesh())
