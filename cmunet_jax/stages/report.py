"""The report stage: result files of sweeps in; page, tables, model card and checklist out."""

import pathlib

import ml_collections

from cmunet_jax.report import cards, frame, study_page, study_tables, tables
from cmunet_jax.report.study import Study, read_study
from cmunet_jax.stages import record
from tfds_angio.errors import UserError


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Writes report.html, tables/, model_card.md and claim.md from result files only.

    Args:
      config: of this stage.
      workdir: where to; default runs/report.

    Returns:
      0; problems of the sweeps are part of the report. 1 where one of several does not exist.

    Raises:
      UserError: if nothing of any sweep can be reported, or the workdir cannot be written.
    """
    workdir = pathlib.Path(workdir or record.default_workdir(config))
    folders = sweeps_of(config.sweep)
    if config.resamples < 1:
        raise UserError(f"config.resamples={config.resamples} must be at least 1.")
    study = read_study(folders, title=config.title, resamples=config.resamples)
    page = workdir / "report.html"
    # All is made before anything is written: what fails leaves an earlier report as it was.
    text = study_page.render(
        page, study, model_card=cards.model_card(study), claim=cards.answered(study)
    )
    tables.write(study, study_tables.tables_of(study), workdir / "tables")
    cards.write(study, workdir)
    frame.write(page, text)
    _print(study)
    print(page)
    return 1 if any(not folder.is_dir() for folder in folders) else 0


def sweeps_of(text: str) -> list[pathlib.Path]:
    """The folders of config.sweep, 'DIR[,DIR]'.

    Raises:
      UserError: if there is none, or one is no folder of this machine.
    """
    names = [name.strip() for name in str(text).split(",") if name.strip()]
    if not names:
        raise UserError("config.sweep is empty: name the workdir of a sweep, DIR[,DIR].")
    for name in names:
        if "://" in name:
            raise UserError(f"config.sweep={name} is not a folder here: copy the sweep here first.")
    return [pathlib.Path(name) for name in names]


def _print(study: Study) -> None:
    """The answers in short, and what was left out."""
    for finding in study.findings:
        print(f"{finding.question}\n  {finding.short}")
    for problem in study.problems:
        print(f"! {problem.where}: {problem.text}")
