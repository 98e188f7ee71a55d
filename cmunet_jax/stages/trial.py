"""One trial of a sweep, in a process of its own: train, then evaluate.

    python -m cmunet_jax.stages.trial runs/sweep/trials/<key>

The worker of a sweep starts it and reads what it leaves in the folder: `outcome.json` beside `run/`
and `evaluation/`. By hand it repeats or finishes one trial. It ends when its standard input ends,
which is how it learns that its worker has died.
"""

import json
import os
import pathlib
import sys
import traceback
import uuid
from typing import Any

from absl import flags, logging

from cmunet_jax import config as config_lib
from cmunet_jax.stages import devices, evaluate, measure, record, train
from cmunet_jax.sweep import child
from cmunet_jax.sweep.claims import now
from cmunet_jax.sweep.store import FULL
from cmunet_jax.train import loop, metrics_file, store
from tfds_angio.errors import UserError
from tfds_angio.exclusive import exclusive

_FULL_TEXTS = tuple(os.strerror(number) for number in FULL)


def run(folder: pathlib.Path) -> int:
    """Does (or finishes) the trial that `folder/spec.json` describes and writes outcome.json.

    Returns:
      0, loop.EXIT_PREEMPTED when stopped (state saved), child.EXIT_STORAGE where the disk is full
      or cannot be written, 2 on an error that the outcome tells in one line.
    """
    outcome: dict[str, Any] = {}
    status = 0
    try:
        spec = json.loads((folder / child.SPEC).read_text())
        with exclusive(folder):  # Another may be left, whose worker was killed.
            devices.set_up()
            if spec.get("measure"):
                outcome = measure.run(config_lib.from_dict(spec["config"]))
            else:
                status, outcome = _do(spec, folder)
    except UserError as error:
        outcome = {"error": " ".join(str(error).split())}
        status = child.EXIT_STORAGE if _of_storage(error) else 2
    except OSError as error:
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}"}
        status = child.EXIT_STORAGE if error.errno in FULL else 1
    except Exception as error:  # Whatever a trial dies of is recorded; the sweep goes on.
        traceback.print_exc()
        outcome, status = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}, 1
    if outcome.get("error"):
        print(f"error: {outcome['error']}", flush=True)
    if status != loop.EXIT_PREEMPTED:
        record.write_json(folder / child.OUTCOME, outcome)
    return status


def _do(spec: dict[str, Any], folder: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Trains and evaluates; (status, outcome)."""
    workdir = folder / "run"
    config = config_lib.from_dict(spec["config"])
    config.init_from = _where_it_began(workdir) or config.get("init_from", "")
    evaluation = spec["evaluation"]
    if evaluation and evaluation["split"] in _watched(config):
        _log_read(folder, spec, evaluation["split"], None, "watched during training")
    status = train.run(config, workdir)
    if status:
        return status, {}
    steps, manifest = _last(workdir)
    checkpoint = {
        "path": f"run/checkpoints/{steps}",
        "digest": manifest.digest,
        "step": steps,
    }
    if evaluation:
        found = _evaluate(spec, folder, evaluation)
        checkpoint |= {k: found["checkpoint"][k] for k in ("digest", "step")}
        checkpoint["path"] = f"run/checkpoints/{found['checkpoint']['step']}"
    return 0, {
        "steps": steps,
        "versions": record.versions(),
        "selection": _selection(workdir, spec["selection"]),
        "evaluation": "evaluation" if evaluation else None,
        "checkpoint": checkpoint,
    }


def _where_it_began(workdir: pathlib.Path) -> str | None:
    """`init_from` of a run that has saved: it goes on without it, wherever that is by now."""
    if not (workdir / record.FILE).is_file():
        return None
    if not store.step_folders(workdir / "checkpoints"):
        # It has nothing to lose, and may have to begin elsewhere: a pre-training that was repeated.
        (workdir / record.FILE).unlink()
        return None
    return record.read(workdir)["config"].get("init_from")


def _watched(config: Any) -> tuple[str, ...]:
    return (config.get("eval_split", ""),) if config.stage == "finetune" else ()


def _last(workdir: pathlib.Path) -> tuple[int, Any]:
    """(step, manifest) of the newest checkpoint."""
    folders = store.step_folders(workdir / "checkpoints")
    step, folder = max(folders.items())
    return step, store.read_manifest(folder)


def _selection(workdir: pathlib.Path, wanted: dict[str, str] | None) -> dict[str, Any] | None:
    """The last value of the metric that scores this trial."""
    if not wanted:
        return None
    name = f"{wanted['split']}/{wanted['metric']}"
    values = [row[name] for row in metrics_file.read_metrics(workdir) if name in row]
    return {**wanted, "value": values[-1] if values else None}


def _evaluate(
    spec: dict[str, Any], folder: pathlib.Path, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Evaluates on the test split unless that was done; returns the summary."""
    config = config_lib.from_dict(evaluation)
    config.checkpoint = str(folder / "run")
    step, manifest = _last(folder / "run")
    summary = folder / "evaluation" / "summary.json"
    found = _evaluated(folder, summary)
    if found:
        dataset = evaluate.open_data(config, manifest.config)
        if _measured_on(found) == (dataset.fingerprint, config.split):
            return found
        aside = folder / f"evaluation.other-{uuid.uuid4().hex[:8]}"
        summary.parent.rename(aside)
        print(f"evaluation/ was of other data than this trial's: kept as {aside.name}, read again.")
    digest = manifest.digest if str(config.step) == "latest" else None
    _log_read(folder, spec, config.split, digest, "final evaluation")
    evaluate.run(config, folder / "evaluation")
    return json.loads(summary.read_text())


def _evaluated(folder: pathlib.Path, summary: pathlib.Path) -> dict[str, Any]:
    """The evaluation that a trial has of its weights; {} where there is none.

    Raises:
      UserError: if it is of other weights.
    """
    try:
        found = json.loads(summary.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    stored = found.get("checkpoint", {})
    saved = store.step_folders(folder / "run" / "checkpoints").get(stored.get("step", -1))
    if saved and store.read_manifest(saved).digest == stored.get("digest"):
        return found
    if stored:
        raise UserError(
            f"{summary} is of other weights (step {stored.get('step')}, digest "
            f"{str(stored.get('digest'))[:12]}) than those in {folder / 'run'}: the test split "
            "is read once for a trial. Move the trial's folder away to do it from the start."
        )
    return {}


def _measured_on(summary: dict[str, Any]) -> tuple[str | None, str | None]:
    """(fingerprint of the data, split) of an evaluation."""
    return summary.get("dataset", {}).get("fingerprint"), summary.get("split")


def _log_read(
    folder: pathlib.Path, spec: dict[str, Any], split: str, digest: str | None, purpose: str
) -> None:
    """Says, before it happens, that this trial looks at the test split."""
    before = len(list((folder / "reads").glob("*.json")))
    content = {
        "time": now(),
        "key": spec["key"],
        "trial": spec["name"],
        "split": split,
        "digest": digest,
        "purpose": purpose,
        "read": before + 1,
    }
    path = folder / "reads" / f"{before + 1}.json"
    record.write_json(path, content)


def _of_storage(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a disk that is full or cannot be written."""
    seen: set[int] = set()
    text = str(error)
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return any(phrase in text for phrase in _FULL_TEXTS)


def main() -> int:
    """Entry point."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if len(sys.argv) != 2:
        print("usage: python -m cmunet_jax.stages.trial FOLDER", file=sys.stderr)
        return 2
    flags.FLAGS(sys.argv[:1])  # Grain's workers need parsed flags.
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    child.end_with_worker(loop.EXIT_PREEMPTED)
    return run(pathlib.Path(sys.argv[1]).absolute())


if __name__ == "__main__":
    sys.exit(main())
