"""The quickstart stage: pre-train, fine-tune with and without it, evaluate both, one report."""

import pathlib
import time

import ml_collections

from cmunet_jax import report
from cmunet_jax.data import datasets
from cmunet_jax.stages import evaluate, record, train


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Runs the whole chain into one workdir; the same command continues where it stopped.

    Returns:
      0, or the status of the first stage that stopped early.
    """
    workdir = workdir or record.default_workdir(config)
    began = time.perf_counter()
    fresh = not workdir.exists()
    _check(config)
    pretrained = workdir / "pretrain"
    print("== 1/3 pre-training without labels")
    status = train.run(config.pretrain, pretrained)
    if status:
        return status
    arms = []
    for number, (key, title) in enumerate(
        (("finetune", "CM-UNet pre-training"), ("scratch", "from scratch")), start=2
    ):
        part = config[key].copy_and_resolve_references()
        part.init_from = str(pretrained) if key == "finetune" else ""
        print(f"== {number}/3 {part.labels} labels, {title}")
        status = train.run(part, workdir / key)
        if status:
            return status
        evaluation = config.evaluate.copy_and_resolve_references()
        with evaluation.unlocked():  # The command line locks a config against new keys.
            evaluation.checkpoint, evaluation.data = str(workdir / key), part.data
        evaluate.run(evaluation, workdir / key / "evaluation")
        name = f"{title}, {part.labels} labels"
        arms.append(report.Arm(name, workdir / key, workdir / key / "evaluation"))
    path = workdir / "report.html"
    facts = {
        "scale": config.scale,
        "draws": 1,
        "seeds": 1,
        "versions": record.versions(),
    }
    if fresh:  # The time of a continued run would be that of its last part.
        facts["seconds"] = time.perf_counter() - began
    report.write(path, title=config.title, pretrain=pretrained, arms=arms, facts=facts)
    print(path)
    return 0


def _check(config: ml_collections.ConfigDict) -> None:
    """Looks at the data of all parts first: a mistake should not wait for the pre-training."""
    for name in ("pretrain", "finetune", "scratch"):
        chosen = train.choose_images(config[name], f"{name}.")
    datasets.size_of(chosen.dataset, config.evaluate.split, key="evaluate.split")
