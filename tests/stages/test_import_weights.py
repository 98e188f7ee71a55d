"""The import stage: what it writes is used as the result of a training is."""

import importlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import preprocessing
from cmunet_jax.interop import safetensors_file, torch_names
from cmunet_jax.models.initialise import shapes_of
from cmunet_jax.models.unet import UNet
from cmunet_jax.stages import evaluate as evaluate_stage
from cmunet_jax.stages import export_header, import_weights, provenance, segment
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint, sharding, transfer
from tests.interop.test_importing import unet_state, unpack
from tests.interop.torch_writer import write_zip
from tests.stage_helpers import tiny
from tfds_angio.errors import UserError


def config_of(path, **overrides):
    config = importlib.import_module("configs.import_weights").get_config()
    config.source = str(path)
    config.preprocessing.size = 64
    config.preprocessing.centre_crop = 128  # the tiny images are smaller than the released crop
    config.update_from_flattened_dict(overrides)
    config_lib.check(config)
    return config


def imported(path, workdir, **overrides):
    assert import_weights.run(config_of(path, **overrides), workdir) == 0
    return checkpoint.load(workdir)


def test_a_fine_tuned_network_is_evaluated_at_once(tiny_dataset, tmp_path, capsys):
    source = write_zip(tmp_path / "ratio.pth", unet_state(4))
    loaded = imported(source, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "118 tensors mapped" in printed and loaded.short_digest in printed
    assert loaded.step == 0 and loaded.preprocessing["name"] == "paper"
    assert loaded.config["provenance"]["imported"]["file"] == "ratio.pth"
    assert "tmp" not in json.dumps(loaded.config)
    report = json.loads((tmp_path / "run" / "import.json").read_text())
    assert report["mapped"]["conv_last.bias"] == "params/decoder/head/bias"
    assert len(report["origin"]["sha256"]) == 64

    evaluation = importlib.import_module("configs.evaluate").get_config()
    evaluation.checkpoint = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"names no data set.*--config.data.name"):
        evaluate_stage.run(evaluation, tmp_path / "evaluation")
    evaluation.data.name = tiny_dataset.name
    evaluation.data.dir = str(tiny_dataset.directory.parents[2])
    assert evaluate_stage.run(evaluation, tmp_path / "evaluation") == 0
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["checkpoint"]["digest"] == loaded.digest
    assert summary["splits"]["seen_in_training"]["note"] == provenance.IMPORTED


def test_the_restored_network_is_the_imported_one(tmp_path):
    state = unet_state(4)
    imported(write_zip(tmp_path / "a.pth", state), tmp_path / "run")
    mesh = sharding.create_mesh()
    segmenter = segment.restore(tmp_path / "run", step="latest", weights="ema", mesh=mesh)
    assert segmenter.kind == "raw"
    params = segmenter.weights["params"]
    for entry in torch_names.unet_entries():
        leaf = torch_names.get(segmenter.weights[entry.collection], entry.path)
        back = torch_names._TO_TORCH[entry.layout](np.asarray(leaf))
        np.testing.assert_array_equal(back, state[entry.torch])
    assert params["decoder"]["head"]["kernel"].dtype == jnp.float32


@pytest.mark.slow
def test_a_pretraining_is_fine_tuned(tiny_dataset, tmp_path, capsys):
    state = {}
    for name, value in unet_state(4).items():
        part = "pixel_decoder." if name.startswith(("up_conv", "conv_last")) else "backbone."
        state[part + name] = value
    source = write_zip(tmp_path / "cmunet.pth", {"meta": {"epoch": 3}, "state_dict": state})
    loaded = imported(source, tmp_path / "run")
    assert loaded.config["objective"]["name"] == "cmunet"
    config = tiny("finetune", tiny_dataset, 2, preset="paper", init_from=str(tmp_path / "run"))
    config.preprocessing.centre_crop = 128
    assert train_stage.run(config, tmp_path / "tuned") == 0
    printed = capsys.readouterr().out
    assert "pixel_decoder → decoder" in printed and "decoder/head" in printed
    tuned = checkpoint.load(tmp_path / "tuned").config["provenance"]
    assert tuned["imported"]["file"] == "cmunet.pth"
    assert tuned["init_from"]["digest"] == loaded.digest
    with pytest.raises(UserError, match="Fine-tune it first"):
        segment.restore(tmp_path / "run", step="latest", weights="ema", mesh=sharding.create_mesh())


@pytest.mark.parametrize(
    ("name", "objective", "parts"),
    [
        ("cmunet.pth", "cmunet", {"encoder", "decoder"}),
        ("spark.pth", "spark", {"encoder", "decoder"}),
        ("genesis.pt", "genesis", {"encoder", "decoder"}),
        ("moco.ckpt", "moco", {"encoder"}),
        ("encoder.pth", "moco", {"encoder"}),
        ("ratio.pth", "scratch", {"encoder", "decoder"}),
    ],
)
def test_every_method_transfers_its_parts(tmp_path, name, objective, parts):
    loaded = imported(unpack(name, tmp_path), tmp_path / "run")
    plan = objectives.create(config_lib.from_dict(loaded.config)).transfer
    fresh = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float32), shapes_of(UNet(2), jnp.zeros((1, 16, 16, 1)))
    )
    _, _, report = transfer.transfer(
        fresh["params"], fresh["batch_stats"], loaded.params, loaded.batch_stats, plan
    )
    assert loaded.config["objective"]["name"] == objective
    assert {path.split("/")[1] for path in report.loaded} == parts
    kept = {path for path in report.loaded if "/decoder/head/" in path}
    assert bool(kept) == (objective == "scratch")


def test_exported_weights_come_back_exactly(tmp_path):
    loaded = imported(write_zip(tmp_path / "a.pth", unet_state(4)), tmp_path / "run")
    exported = tmp_path / "weights.safetensors"
    safetensors_file.write(exported, *loaded.weights(), {"digest": loaded.digest})
    again = imported(exported, tmp_path / "again")
    jax.tree.map(
        np.testing.assert_array_equal,
        (again.params, again.batch_stats),
        (loaded.params, loaded.batch_stats),
    )


OURS = preprocessing.create({"name": "fixed", "size": 64, "flatten": 0.5}).to_dict()


def exported(path, **changes):
    """A file of our export, of a network of width 4; `changes` replace facts of its header."""
    facts = {
        "format": 1,
        "checkpoint": {"digest": "0" * 64, "step": 3, "weights": "ema"},
        "data": {"name": "arcade", "fingerprint": "f", "splits": "built"},
        "network": {"width": 4, "up": "transposed", "dtype": "bfloat16"},
        "preprocessing": OURS,
        "versions": {"jax": "0.10"},
    }
    texts = export_header.write(facts | {k: v for k, v in changes.items() if type(v) is not str})
    texts |= {k: v for k, v in changes.items() if type(v) is str}
    tensors = unet_state(4)
    safetensors.numpy.save_file(tensors, path, {k: v for k, v in texts.items() if v != "absent"})
    return path


def as_shipped(path, **overrides):
    config = importlib.import_module("configs.import_weights").get_config()
    config.source = str(path)
    config.update_from_flattened_dict(overrides)
    return config


def test_our_own_export_keeps_its_preprocessing_and_network(tmp_path, capsys):
    source = exported(tmp_path / "model.safetensors")
    assert import_weights.run(as_shipped(source), tmp_path / "run") == 0
    assert "preprocessing fixed at 64²: as the file says" in capsys.readouterr().out
    loaded = checkpoint.load(tmp_path / "run")
    assert dict(loaded.preprocessing) == loaded.config["preprocessing"] == OURS
    assert loaded.config["model"]["dtype"] == "bfloat16"
    told = loaded.config["provenance"]["imported"]
    assert told["preprocessing"] == OURS and told["facts"]["export"]["checkpoint"]["step"] == 3


@pytest.mark.parametrize(
    ("overrides", "size", "words"),
    [
        ({"preprocessing.name": "paper"}, 256, "against the file's own (fixed at 64²)"),
        ({"preprocessing.name": "paper", "preprocessing.size": 96}, 96, "expect other masks"),
        ({"preprocessing.size": 256}, 256, "against the file's own (fixed at 64²)"),
        ({"preprocessing.name": "fixed", "preprocessing.size": 64}, 64, "as the file says"),
    ],
)
def test_what_the_config_asks_wins_over_an_export_and_is_said(overrides, size, words):
    config = as_shipped("model.safetensors", **overrides)
    chain, said = import_weights._preprocessing(config, {"preprocessing": OURS})
    name = overrides.get("preprocessing.name", "fixed")
    assert (chain.name, chain.size) == (name, size) and words in said
    assert name == "paper" or chain.options.flatten == 0.5


def test_a_file_that_tells_no_preprocessing_gets_the_released_chain():
    chain, said = import_weights._preprocessing(as_shipped("weights.pth"), {})
    assert chain == preprocessing.create({"name": "paper", "size": 256})
    assert "the file tells none" in said
    other = as_shipped("weights.pth", **{"preprocessing.name": "fixed"})
    assert import_weights._preprocessing(other, {})[0].name == "fixed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessing": "absent"}, r"damaged \(preprocessing is missing\): export it again"),
        ({"preprocessing": "{"}, "preprocessing is no JSON"),
        ({"preprocessing": "[" * 9000}, "preprocessing is no JSON"),
        ({"preprocessing": " " * 20000}, "preprocessing has more than 16384 characters"),
        ({"preprocessing": "[1]"}, "preprocessing is no group of values"),
        ({"preprocessing": OURS | {"size": 10**6}}, "preprocessing.size=1000000 is above 8192"),
        ({"preprocessing": OURS | {"size": 100}}, "preprocessing.size=100 must be a multiple"),
        ({"preprocessing": OURS | {"size": True}}, "preprocessing has no name, size and version"),
        ({"preprocessing": OURS | {"name": "x"}}, "preprocessing.name='x' is unknown"),
        ({"preprocessing": OURS | {"a\nb": 1}}, "preprocessing has a key that is no name"),
        ({"preprocessing": OURS | {"fade": float("nan")}}, "preprocessing.fade is no number"),
        ({"preprocessing": OURS | {"fade": [1]}}, "preprocessing.fade is no number"),
        ({"preprocessing": OURS | {"more": 1}}, "preprocessing.more is no option of 'fixed'"),
        ({"preprocessing": {"name": "fixed", "size": 64, "version": 1}}, "lacks darkness, fade"),
        ({"preprocessing": OURS | {"version": 9}}, "use the release of this project that wrote"),
        ({"format": 2}, "its header has format 2, and this release reads 1"),
        ({"format": "absent"}, "format is missing"),
        ({"network": {"width": 4}}, "network has not just width, up, dtype"),
        (
            {"network": {"width": 8, "up": "transposed", "dtype": "float32"}},
            "its header says width 8, its tensors are of width 4",
        ),
        (
            {"network": {"width": 4, "up": "transposed", "dtype": "int8"}},
            "network.dtype is 'int8', none of float32, bfloat16",
        ),
        ({"checkpoint": {"digest": "x", "step": 1, "weights": "ema"}}, "is no SHA-256"),
    ],
)
def test_a_damaged_header_of_our_export_is_one_line(tmp_path, changes, message):
    source = exported(tmp_path / "model.safetensors", **changes)
    with pytest.raises(UserError, match=message) as caught:
        import_weights.run(as_shipped(source), tmp_path / "run")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)


def test_one_file_gives_one_digest(tmp_path):
    first = imported(write_zip(tmp_path / "a.pth", unet_state(2)), tmp_path / "one")
    (tmp_path / "b").mkdir()
    (tmp_path / "a.pth").rename(tmp_path / "b" / "a.pth")
    second = imported(tmp_path / "b" / "a.pth", tmp_path / "two")
    assert first.digest == second.digest


def test_nothing_is_replaced_unasked(tmp_path):
    source = write_zip(tmp_path / "a.pth", unet_state(2))
    before = imported(source, tmp_path / "run")
    with pytest.raises(UserError, match=r"already.*--config.overwrite=True"):
        import_weights.run(config_of(source), tmp_path / "run")
    write_zip(source, unet_state(3))
    after = imported(source, tmp_path / "run", overwrite=True)
    assert (before.config["model"]["width"], after.config["model"]["width"]) == (2, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"config": {"stage": "finetune"}}')
    with pytest.raises(UserError, match="run of stage finetune"):
        import_weights.run(config_of(source, overwrite=True), tmp_path / "other")


def test_a_failed_import_leaves_nothing(tmp_path):
    source = write_zip(tmp_path / "a.pth", {"layer": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="of no network"):
        import_weights.run(config_of(source), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def contents(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize("fails", ["Checkpointer", "load", "write", "checkpoints"])
def test_an_import_that_fails_while_it_writes_leaves_nothing(tmp_path, monkeypatch, fails):
    source, workdir = write_zip(tmp_path / "a.pth", unet_state(2)), tmp_path / "new" / "run"
    replace = os.replace

    def full(*arguments, **named):
        raise UserError("no space")

    def refuse(source, target):
        if str(target) == str(workdir / "checkpoints") and "replaced" not in str(source):
            raise OSError(28, "No space left on device")
        replace(source, target)

    def attempt(**overrides):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"(?i)no space"):
            if fails == "checkpoints":
                patch.setattr(import_weights.os, "replace", refuse)
            else:
                where = import_weights.record if fails == "write" else import_weights.checkpoint
                patch.setattr(where, fails, full)
            import_weights.run(config_of(source, **overrides), workdir)

    attempt()
    assert not (tmp_path / "new").exists()
    imported(source, workdir)
    before = contents(workdir)
    attempt(overwrite=True)
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 64}, "config.width=64, but the network in .* has width 2"),
        ({"up": "bilinear"}, "config.up=bilinear, but .* has up transposed"),
        ({"one_output": "moco"}, "config.one_output='moco'"),
        ({"source": ""}, "config.source is empty"),
        ({"source": "/nowhere/a.pth"}, "/nowhere/a.pth cannot be read: No such file"),
        ({"source": "/"}, "is a folder"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path, overrides, message):
    source = write_zip(tmp_path / "a.pth", unet_state(2))
    with pytest.raises(UserError, match=message):
        import_weights.run(config_of(source, **overrides), tmp_path / "run")


@pytest.mark.slow
def test_from_the_command_line_a_mistake_is_status_2(run_python, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    command = ("-m", "cmunet_jax.main", "--config", "configs/import_weights.py")
    where = (f"--config.source={path}", f"--workdir={tmp_path / 'run'}")
    done = run_python(*command, *where, check=False)
    assert done.returncode == 2 and "git lfs pull" in done.stderr
    assert done.stderr.count("\n") == 1
    write_zip(path, unet_state(2))
    assert "118 tensors mapped" in run_python(*command, *where).stdout


def test_a_report_that_is_not_ours_stays(tmp_path):
    source = write_zip(tmp_path / "ratio.pth", unet_state(4))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "import.json").write_text("mine")
    with pytest.raises(UserError, match=r"import.json is there, of no import"):
        import_weights.run(config_of(source), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["import.json"]
