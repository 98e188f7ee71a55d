"""Every config loads with all its arguments, is consistent, and runs two real steps."""

import importlib
import itertools
import json
import pathlib
import runpy
import shutil

import pytest

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import preprocessing, views
from cmunet_jax.stages import STAGES
from cmunet_jax.stages import evaluate as evaluate_stage
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint
from tests.stage_helpers import tiny
from tfds_angio.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(
    p.name for p in (ROOT / "configs").glob("*.py") if p.name not in ("common.py", "__init__.py")
)
SIZES = "size=paper,small,demo,tiny"
METHODS = "objective=cmunet,genesis,mae,moco,spark"
ARGUMENTS = {
    "pretrain.py": (SIZES, "preset=fixed,paper", "preprocessing=fixed,paper", METHODS),
    "finetune.py": (SIZES, "preset=fixed,paper", "init=pretrained,scratch"),
    "benchmark.py": (SIZES, "dtype=float32,bfloat16", "data=angio_synthetic,arcade"),
    "quickstart.py": ("size=demo,tiny", "labels=5,18"),
    "evaluate.py": ("data=arcade,angio_folder",),
    "predict.py": (),
    "export.py": (),
    "report.py": (),
    "import_weights.py": (),
    "view.py": (),
    "select.py": ("data=arcade,angio_folder",),
    "sweep.py": (SIZES, "protocol=fair,paper", "data=angio_synthetic,arcade"),
}  # fmt: skip


def combinations():
    for name in FILES:
        yield name, None
        axes = []
        for axis in ARGUMENTS[name]:
            key, _, values = axis.partition("=")
            axes.append([f"{key}={v}" for v in values.split(",")])
        yield from ((name, ",".join(parts)) for parts in itertools.product(*axes))


@pytest.mark.parametrize(("name", "arg"), combinations())
def test_every_config_loads_and_is_consistent(name, arg):
    config = runpy.run_path(str(ROOT / "configs" / name))["get_config"](arg)
    config_lib.check(config)
    assert config.stage in STAGES
    stored = config_lib.to_dict(config)
    assert json.loads(json.dumps(stored)) == stored
    assert config_lib.to_dict(config_lib.from_dict(stored)) == stored
    parts = [config]
    if name == "quickstart.py":
        parts = [config.pretrain, config.finetune, config.scratch]
    elif name in ("sweep.py", "benchmark.py"):
        parts = [*config.pretrain.values(), config.finetune]
    for part in parts:
        if "objective" in part:
            objective = objectives.create(part)
            preprocessing.create(part.preprocessing)
            views.check(objective.views, part.views)
            assert part.batch_size % part.accumulation == 0


@pytest.mark.parametrize(
    ("file", "arg"),
    [
        ("finetune", "init=scratch"),
        *(("pretrain", f"objective={name}") for name in objectives.OBJECTIVES if name != "scratch"),
    ],
)
def test_training_views_follow_the_size_of_the_images(file, arg):
    def of_size(size):
        return importlib.import_module(f"configs.{file}").get_config(f"{arg},size={size}")

    changed, wanted = of_size("paper"), of_size("small")
    changed.preprocessing.size = wanted.preprocessing.size
    assert changed.views.to_dict() == wanted.views.to_dict() != of_size("paper").views.to_dict()
    side = next(key for key in ("size", "crop") if key in changed.views)
    changed.views[side] = 64  # one's own size moves the views alone
    assert (changed.views[side], changed.preprocessing.size) == (64, wanted.preprocessing.size)


def test_stages_and_their_names_agree():
    assert set(STAGES) == set(config_lib.STAGES)


@pytest.mark.parametrize("name", FILES)
def test_the_header_tells_command_cost_and_expectation(name):
    text = runpy.run_path(str(ROOT / "configs" / name))["__doc__"]
    assert f"configs/{name}" in text and "python -m cmunet_jax.main" in text
    assert any(word in text.lower() for word in ("minute", "hour", "second"))


def test_unknown_arguments_are_refused():
    with pytest.raises(UserError, match="'sise'"):
        importlib.import_module("configs.pretrain").get_config("sise=small")


def trained(workdir, stage, preset, dataset, **overrides):
    """A workdir that a training of two steps wrote, and its config."""
    config = tiny(stage, dataset, 2, preset=preset, **overrides)
    if preset == "paper":
        config.preprocessing.centre_crop = 128  # the tiny images are smaller than the released crop
    assert train_stage.run(config, workdir) == 0
    return workdir, config


@pytest.fixture(scope="module")
def pretrained(tiny_dataset, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("pretrain"), "pretrain", "fixed", tiny_dataset)[0]


@pytest.fixture(scope="module")
def finetuned(tiny_dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetune")
    return trained(workdir, "finetune", "fixed", tiny_dataset, labels=0)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("preset", ["fixed", "paper"])
def test_two_steps_of_every_stage_and_preset(request, stage, preset, tiny_dataset, tmp_path):
    workdir = tmp_path
    if preset == "paper":
        trained(workdir, stage, preset, tiny_dataset)
    elif stage == "pretrain":
        workdir = request.getfixturevalue("pretrained")
    else:
        workdir, _ = request.getfixturevalue("finetuned")
    loaded = checkpoint.load(workdir)
    assert loaded.step == 2
    assert loaded.config["objective"]["preset"] == preset
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [2]


def test_pretrain_finetune_evaluate_hand_over(pretrained, tiny_dataset, tmp_path, capsys):
    """What a researcher does, at its smallest: three commands, each on the result of the last."""
    config = tiny("finetune", tiny_dataset, 2, init_from=str(pretrained))
    config.eval_split, config.eval_every, config.eval_images = "val", "50%", 4
    config.pictures_every = "50%"
    assert train_stage.run(config, tmp_path / "finetune") == 0
    printed = capsys.readouterr().out
    assert "encoder" in printed and "decoder/head" in printed and "re-initialised" in printed

    evaluation = importlib.import_module("configs.evaluate").get_config()
    evaluation.checkpoint = str(tmp_path / "finetune")
    evaluation.data.dir = config.data.dir
    assert evaluate_stage.run(evaluation, tmp_path / "evaluation") == 0
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["n"] == len(tiny_dataset.ids("test"))
    assert summary["checkpoint"]["digest"] == checkpoint.load(tmp_path / "finetune").digest
    assert (tmp_path / "evaluation" / "cases.csv").read_text().count("\n") == summary["n"] + 1
    assert list((tmp_path / "finetune" / "pictures").glob("prediction_*.png"))


def test_a_network_is_not_measured_on_what_it_was_trained_on(finetuned, tiny_dataset):
    workdir, _ = finetuned
    config = importlib.import_module("configs.evaluate").get_config()
    config.checkpoint, config.split = str(workdir), "train"
    count = len(tiny_dataset.ids("train"))
    with pytest.raises(UserError, match=f"{count} images and .* patients"):
        evaluate_stage.run(config, None)
    assert not list(workdir.glob("evaluation*"))


def test_a_run_is_not_continued_on_another_build(finetuned, tiny_dataset, tmp_path):
    workdir, config = finetuned
    copy = shutil.copytree(workdir, tmp_path / "copy")
    path = copy / "config.json"
    path.write_text(path.read_text().replace(tiny_dataset.fingerprint, "0" * 64))
    with pytest.raises(UserError, match="another build"):
        train_stage.run(config, copy)


def test_a_pretrained_network_is_not_evaluated(pretrained, tmp_path):
    config = importlib.import_module("configs.evaluate").get_config()
    config.checkpoint = str(pretrained)
    with pytest.raises(UserError, match="Fine-tune it first"):
        evaluate_stage.run(config, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()
