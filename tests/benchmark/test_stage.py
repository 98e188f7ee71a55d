"""The benchmark runs, at its smallest, and what fails in it is a row."""

import importlib
import json

import numpy as np
import pytest

from cmunet_jax.benchmark import host, versus
from cmunet_jax.stages import benchmark
from tfds_angio.errors import UserError


def _config(dataset, cases, **overrides):
    config = importlib.import_module("configs.benchmark").get_config("size=tiny")
    config.cases, config.repetitions, config.slow_repetitions, config.seconds = cases, 2, 1, 0.0
    config.batch_size = 2
    config.data.dir, config.data.name = str(dataset.directory.parents[2]), dataset.name
    config.data.workers = 1
    config.metrics.images, config.metrics.side = 2, 64
    config.update_from_flattened_dict(overrides)
    return config


def _rows(folder):
    stored = json.loads((folder / benchmark.FILE).read_text())
    return stored, {row["what"]: row for row in stored["rows"]}


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    from cmunet_jax.benchmark import roofline

    monkeypatch.setattr(roofline, "SIDES", {"cpu": (64,)})
    monkeypatch.setattr(roofline, "STREAM_BYTES", {"cpu": 1 << 20})


def _check_step(rows, batch):
    """The counts of a training step and of the loop around it."""
    step = rows["finetune: step"]
    assert step["images"] == batch and len(step["samples"]) >= 2 and min(step["samples"]) > 0
    assert step["images_per_second"] == pytest.approx(batch / np.median(step["samples"]))
    assert 0 < step["roofline_fraction"] and step["cost"]["memory"] > 0
    # Forward and backward are about three times the forward pass.
    assert 2.5 < step["cost"]["flops"] / rows["inference"]["cost"]["flops"] < 4
    share = rows["finetune: augmentation / step"]["samples"]
    parts = zip(rows["finetune: augmentation"]["samples"], step["samples"])
    assert share == pytest.approx([a / b for a, b in parts])
    assert len(rows["idle: between steps"]["samples"]) == 2


def test_it_measures_inference_checkpoints_and_metrics(tiny_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    config = _config(tiny_dataset, "metrics,inference,checkpoint")
    assert benchmark.run(config, tmp_path) == 0
    stored, rows = _rows(tmp_path)
    cases = [row["case"] for row in stored["rows"]]
    assert cases == ["inference", *["checkpoint"] * 3, "metrics"]
    assert rows["inference"]["images"] == 2 and rows["inference"]["cost"]["flops"] > 0
    assert rows["checkpoint: restore, verify"]["moved_bytes"] > 1e5
    assert stored["machine"]["cores_usable"] >= 1 and stored["versions"]["jax"]
    assert stored["command"].startswith("python -m cmunet_jax.main")
    printed = capsys.readouterr().out
    assert "roofline" in printed and printed.strip().endswith(benchmark.FILE)
    assert stored["machine"]["malloc"] in printed and stored["machine"]["malloc"]


def test_a_case_that_fails_is_a_row_and_the_rest_goes_on(tiny_dataset, tmp_path, capsys):
    config = _config(tiny_dataset, "cmunet,metrics", batch_size=1000)
    assert benchmark.run(config, tmp_path) == 1
    stored, rows = _rows(tmp_path)
    assert "larger than the" in rows["cmunet"]["error"]
    assert rows["metrics of 2 images 64²"]["samples"]
    assert "failed: cmunet" in capsys.readouterr().out


def test_an_unknown_case_is_refused(tiny_dataset, tmp_path):
    with pytest.raises(UserError, match="'inferense'.*inference"):
        benchmark.run(_config(tiny_dataset, "inferense"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_pytorch_one_line_says_so(tiny_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(versus.importlib.util, "find_spec", lambda name: None)
    assert benchmark.run(_config(tiny_dataset, "torch_finetune"), tmp_path) == 0
    assert "PyTorch is not installed" in capsys.readouterr().out


def test_values_of_the_benchmark_are_those_of_every_training(tiny_dataset):
    config = _config(tiny_dataset, "all")
    config.dtype, config.fast = "bfloat16", False
    for name in benchmark.STEPS:
        part = benchmark._part(config, name)
        assert (part.batch_size, part.model.dtype, part.model.fast) == (2, "bfloat16", False)
        assert part.data.name == tiny_dataset.name and part.accumulation == 1


def test_the_rendered_split_is_evaluated_as_it_was_made():
    split = host.RenderedSplit(2, 64)
    assert len(split.ids("test")) == len(split) == 2
    example = split[0]
    assert example["image"].shape == example["mask"].shape == (64, 64, 1)
    assert example["mask"].any() and not example["image"][:8].max() > 60
    logits = host.segments(None, np.array([[[[1.0]], [[0.0]]]]))
    assert (logits[..., 1] > logits[..., 0]).ravel().tolist() == [True, False]


@pytest.mark.slow
def test_every_case_runs_from_the_command_line(run_python, tiny_dataset, tmp_path):
    done = run_python(
        "-m", "cmunet_jax.main", "--config", "configs/benchmark.py:size=tiny",
        f"--workdir={tmp_path}", f"--config.data.dir={tiny_dataset.directory.parents[2]}",
        "--config.repetitions=2", "--config.slow_repetitions=1", "--config.seconds=0",
        "--config.batch_size=4", "--config.torch.compile=False", timeout=560,
    )  # fmt: skip
    stored, rows = _rows(tmp_path)
    ours = {name for name in benchmark.CASES if not name.startswith("torch")}
    assert {row["case"] for row in stored["rows"]} >= ours
    assert not [row for row in stored["rows"] if row["error"]]
    assert rows["build angio_synthetic/tiny"]["images"] == 64
    _check_step(rows, 4)
    assert rows["remat=blocks: temporary memory / none"]["samples"][0] < 1
    stored_all, norms = (rows[f"remat={m}: finetune step"]["samples"] for m in ("none", "norms"))
    shares = [b / a for a, b in zip(stored_all, norms, strict=True)]
    assert rows["remat=norms: time / none"]["samples"] == pytest.approx(shares)
    # The step itself is most of what is compiled; a start with a warm cache finds it there.
    assert max(rows["finetune: compiled anew when cached"]["samples"]) < 0.2
    assert "U-Net-4" in done.stdout
