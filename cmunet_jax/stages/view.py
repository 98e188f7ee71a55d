"""The view stage: a predict run or a list of images in, a page on this machine out."""

import os
import pathlib

import ml_collections

from cmunet_jax.viewer import app, labels, pictures, runs, server
from cmunet_jax.viewer.catalogue import Catalogue
from tfds_angio.errors import UserError

_DEFAULT_RUN = "runs/predictions"


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Serves the page until Ctrl-C or SIGTERM; corrected masks go to `config.labels`.

    Args:
      config: of this stage.
      workdir: none: only labels are written.

    Raises:
      UserError: if there is nothing to show, the labels cannot be written or the port is taken.
    """
    if workdir is not None:
        raise UserError("--workdir: stage view writes labels only. Use --config.labels=FOLDER.")
    shown = catalogue_of(config)
    # A link that the user names is followed once, here; one that appears later is refused.
    folder = pathlib.Path(os.path.realpath(config.labels))
    labels.prepare(folder)
    served = app.Served(shown, folder, bool(config.overwrite))
    for line in shown.told:
        print(line)
    print(f"{_counted(shown)}; corrected masks go to {config.labels}", flush=True)
    server.serve(served, port=config.port, open_browser=config.open_browser)
    return 0


def catalogue_of(config: ml_collections.ConfigDict) -> Catalogue:
    """What the config names: a run, two runs, or images.

    Raises:
      UserError: if it cannot be read, or the keys do not go together.
    """
    if config.images and (config.input or config.compare):
        other = "input" if config.input else "compare"
        raise UserError(f"config.images and config.{other} are two things to look at: give one.")
    if config.images:
        return pictures.of_images(pathlib.Path(config.images))
    second = pathlib.Path(config.compare) if config.compare else None
    return runs.of_runs(pathlib.Path(config.input or _DEFAULT_RUN), second)


def _counted(shown: Catalogue) -> str:
    frames = sum(len(case.frames) for case in shown.cases)
    problems = sum(bool(case.problem) for case in shown.cases)
    named = f", {problems} with a problem that the page names" if problems else ""
    return f"{len(shown.cases)} cases, {frames} frames{named}"
