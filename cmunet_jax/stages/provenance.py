"""What a network has seen: travels in its checkpoint, so that nothing it trained on tests it."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from cmunet_jax.train.checkpoint import Loaded
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError
from tfds_angio.resplit import PAPER

IMPORTED = "its weights were imported: what they were trained on before is not known"


def of_training(
    config: ml_collections.ConfigDict, chosen: Any, initial: Loaded | None
) -> dict[str, Any]:
    """Returns data set, fingerprint, a file of ids, and what was seen, by data set family.

    Of each family: `ids` of the images, `masks` (ids of those whose masks were learnt from) and
    `patients` (or runs, where no patient is known).

    Args:
      config: of a training stage.
      chosen: `train.Chosen`.
      initial: the checkpoint it starts from, whose images count as seen.
    """
    dataset: AngioDataset = chosen.dataset
    split = config.data.split
    group_of = dict(zip(dataset.ids(split), dataset.groups(split), strict=True))
    seen = {
        "ids": set(chosen.ids),
        "masks": set(chosen.ids) if config.stage == "finetune" else set(),
        "patients": {group_of[i] for i in chosen.ids if group_of[i]},
    }
    facts: dict[str, Any] = {
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "splits": dataset.splits,
        },
        "init_from": None,
    }
    if config.get("label_ids"):
        facts["label_ids"] = _of_list(config, chosen)
    families = {}
    if initial:
        facts["init_from"] = {"path": str(initial.path), "digest": initial.digest}
        before_it = initial.config.get("provenance", {})
        families = dict(before_it.get("seen", {}))
        if "imported" in before_it:
            facts["imported"] = before_it["imported"]
    before = families.get(dataset.name, {})
    families[dataset.name] = {k: sorted(set(before.get(k, [])) | v) for k, v in seen.items()}
    return facts | {"seen": families}


def _of_list(config: ml_collections.ConfigDict, chosen: Any) -> dict[str, Any]:
    """Which images a file of ids stood for when the run began."""
    digest = hashlib.sha256("\n".join(chosen.ids).encode()).hexdigest()
    return {"path": str(config.get("label_ids", "")), "images": len(chosen.ids), "sha256": digest}


def check_same_labels(
    workdir: pathlib.Path, facts: Mapping[str, Any], config: ml_collections.ConfigDict, chosen: Any
) -> None:
    """Refuses to continue a run whose file of ids lists other images by now.

    Raises:
      UserError: naming the file and the remedy.
    """
    before, now = facts.get("label_ids"), _of_list(config, chosen)
    if before and before["sha256"] != now["sha256"]:
        raise UserError(
            f"{workdir} was started on other images than config.label_ids={config.label_ids} lists "
            "now. Choose another --workdir to train on these."
        )


def check_unseen(
    trained: Mapping[str, Any], dataset: AngioDataset, split: str
) -> dict[str, int | str]:
    """Refuses to evaluate a network on what it, or its pre-training, was trained on.

    Splits of one build are disjoint; a set that was rebuilt or divided anew may share images or
    patients with what was seen. Two cases are allowed, and reported:

    - splits 'paper' divide by image, so patients are on both sides; that is how it was released;
    - the split `fold` is part of the labelled images of train, which a pre-training may have seen
      without their masks. It chooses between settings; it is no test.

    Args:
      trained: the stored config of the checkpoint, with its provenance.
      dataset: to evaluate on.
      split: of it.

    Returns:
      {'images', 'patients': how many of the split were seen, 'note': why that is allowed, or ''}.

    Raises:
      UserError: with the number of images and of patients that were seen in training.
    """
    known = trained.get("provenance", {})
    imported = IMPORTED if "imported" in known else ""
    seen = known.get("seen", {}).get(dataset.name)
    if not seen:
        return {"images": 0, "patients": 0, "note": imported}
    group_of = dict(zip(dataset.ids(split), dataset.groups(split), strict=True))
    images = set(group_of) & set(seen["ids"])
    patients = {group_of[i] for i in group_of} & set(seen["patients"])
    refused, note = images or patients, ""
    if dataset.splits == PAPER:
        note = "splits 'paper' divide by image: views of a patient may be in training and test"
        refused = images
    if split == "fold":
        learnt = set(seen.get("masks", seen["ids"]))
        note = "the fold's images may have been in pre-training, without their masks"
        refused = images & learnt
        if dataset.splits != PAPER:
            refused |= {i for i in group_of if group_of[i] in _groups_of(dataset, learnt)}
    if refused:
        raise UserError(
            f"{len(images)} images and {len(patients)} patients of {dataset.name} {split} were in "
            "the training data of this checkpoint, so measuring on them would be dishonest. The "
            "data set was built or divided anew since (config.data.splits), or the split is one of "
            "training: choose config.split=test or val of the build it was trained on, or train "
            "again."
        )
    notes = [note if images or patients else "", imported]
    told = "; ".join(filter(None, notes))
    return {"images": len(images), "patients": len(patients), "note": told}


def _groups_of(dataset: AngioDataset, ids: set[str]) -> set[str]:
    """The known patients and runs of some training images."""
    pairs = zip(dataset.ids("train"), dataset.groups("train"), strict=True)
    return {group for i, group in pairs if i in ids and group}
