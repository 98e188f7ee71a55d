"""What a network has seen: travels in its checkpoint, so that nothing it trained on tests it."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cmunet_jax.train.checkpoint import Loaded
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError


def of_training(
    config: ml_collections.ConfigDict, chosen: Any, initial: Loaded | None
) -> dict[str, Any]:
    """Returns data set, fingerprint and the images and patients seen, by data set family.

    Args:
      config: of a training stage.
      chosen: `train.Chosen`.
      initial: the checkpoint it starts from, whose images count as seen.
    """
    dataset: AngioDataset = chosen.dataset
    split = config.data.split
    patient_of = dict(zip(dataset.ids(split), dataset.patients(split), strict=True))
    seen = {
        "ids": set(chosen.ids),
        "patients": {patient_of[i] for i in chosen.ids if patient_of[i]},
    }
    facts: dict[str, Any] = {
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "init_from": None,
    }
    families = {}
    if initial:
        facts["init_from"] = {"path": str(initial.path), "digest": initial.digest}
        families = dict(initial.config.get("provenance", {}).get("seen", {}))
    before = families.get(dataset.name, {"ids": [], "patients": []})
    families[dataset.name] = {k: sorted(set(before[k]) | v) for k, v in seen.items()}
    return facts | {"seen": families}


def check_unseen(
    trained: Mapping[str, Any], dataset: AngioDataset, split: str, ids: Sequence[str]
) -> None:
    """Refuses to evaluate a network on what it, or its pre-training, was trained on.

    Splits of one build are disjoint; a rebuilt set may divide its patients otherwise.

    Args:
      trained: the stored config of the checkpoint, with its provenance.
      dataset: to evaluate on.
      split: of it.
      ids: of it.

    Raises:
      UserError: with the number of images and of patients that were seen in training.
    """
    seen = trained.get("provenance", {}).get("seen", {}).get(dataset.name)
    if not seen:
        return
    patient_of = dict(zip(dataset.ids(split), dataset.patients(split), strict=True))
    images = set(ids) & set(seen["ids"])
    patients = {patient_of[i] for i in ids} & set(seen["patients"])
    if images or patients:
        raise UserError(
            f"{len(images)} images and {len(patients)} patients of {dataset.name} {split} were in "
            "the training data of this checkpoint, so measuring on them would be dishonest. The "
            "data set was built anew since, or the split is one of training: choose "
            "config.split=test or val of the build it was trained on, or train again."
        )
