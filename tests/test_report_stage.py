"""The report stage: from folders to files, or one clear line."""

from __future__ import annotations

import importlib

import pytest

from cmunet_jax.stages import STAGES
from cmunet_jax.stages import report as report_stage
from tests.report import fake_sweep
from tfds_angio.errors import UserError


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return fake_sweep.build_fair(
        tmp_path_factory.mktemp("sweeps"),
        methods=("scratch", "cmunet"),
        labels=(18, 500),
        draws=(0, 1),
        search=False,
        failed="cmunet/18 labels/draw 1/seed 0",
    )


def config_for(text: str):
    config = importlib.import_module("configs.report").get_config()
    config.sweep, config.resamples = text, 50
    return config


def test_everything_is_written_and_the_last_line_is_the_page(sweep, tmp_path, capsys):
    assert STAGES["report"](config_for(f" {sweep} ,"), tmp_path / "report") == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1] == str(tmp_path / "report" / "report.html")
    assert any("loss is not finite" in line for line in printed)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.html", "tables", "model_card.md", "claim.md"}


def test_the_same_files_give_the_same_report(sweep, tmp_path):
    for name in ("a", "b"):
        report_stage.run(config_for(str(sweep)), tmp_path / name)
    for path in (tmp_path / "a" / "tables").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "tables" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "config.sweep is empty"),
        (" , ", "config.sweep is empty"),
        ("gs://bucket/sweep", "copy the sweep here"),
        ("absent", "absent does not exist"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_named(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        report_stage.run(config_for(text), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_sweep_that_does_not_exist_is_named_and_the_rest_reported(sweep, tmp_path, capsys):
    status = report_stage.run(config_for(f"{tmp_path / 'absent'},{sweep}"), tmp_path / "report")
    assert status == 1 and (tmp_path / "report" / "report.html").is_file()
    assert "absent does not exist" in capsys.readouterr().out


def test_a_page_that_cannot_be_made_leaves_nothing_half_new(sweep, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise UserError("no page")

    monkeypatch.setattr(report_stage.study_page, "render", fail)
    with pytest.raises(UserError, match="no page"):
        report_stage.run(config_for(str(sweep)), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_no_resamples_make_no_interval(sweep, tmp_path):
    config = config_for(str(sweep))
    config.resamples = 0
    with pytest.raises(UserError, match="resamples=0"):
        report_stage.run(config, tmp_path)


def test_a_workdir_that_cannot_be_written_is_named(sweep, tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        report_stage.run(config_for(str(sweep)), tmp_path / "report")
