"""Finds or builds the data set that a config names."""

import ml_collections

from cmunet_jax.data import id_lists
from tfds_angio import options as option_parser
from tfds_angio import resplit
from tfds_angio.base import AngioDataset, build, open_dataset
from tfds_angio.errors import UserError

EMBEDDED = "angio_synthetic"
_MADE_BY = {
    "holdout": " It is made by config.data.splits, e.g. holdout:100.",
    "fold": " It is made by config.folds, e.g. 3, and config.fold.",
}


def open_or_build(options: ml_collections.ConfigDict, *, progress: bool = True) -> AngioDataset:
    """Opens `options.name` under `options.dir`, building it first where that is possible.

    The synthetic set needs no source and is always built on demand; others are built when
    `options.source` names the user's files. `progress`: whether to show a bar while it is built.

    Raises:
      UserError: if the set is neither there nor can be built, or cannot be divided as
        `options.splits` says.
    """
    if options.source or options.name.split("/")[0] == EMBEDDED:
        dataset = build(
            options.name,
            data_dir=options.dir,
            source=options.source or None,
            options=option_parser.from_command_line(options.options.split()),
            workers=options.workers or None,
            progress=progress,
        )
    else:
        dataset = open_dataset(options.name, data_dir=options.dir)
    return resplit.resplit(dataset, options.get("splits") or resplit.BUILT)


def labelled_subset(
    dataset: AngioDataset,
    *,
    labels: int,
    draw: int,
    folds: int,
    fold: int,
    label_ids: str = "",
    prefix: str = "",
) -> tuple[AngioDataset, list[str]]:
    """The labelled images that a fine-tuning learns from.

    Args:
      dataset: from `open_or_build`.
      labels: how many images of the draw; 0: all of train.
      draw: which of the nested draws.
      folds: 0, or into how many folds the subset is divided.
      fold: the one that is not learnt from; it becomes the split `fold`.
      label_ids: a file that lists the images in the place of a draw (`id_lists.read`), '' for none.
      prefix: of the keys in messages.

    Returns:
      The data set, with the split `fold` if there are folds, and the ids.

    Raises:
      UserError: more labels than images, no such draw, a file that cannot be used, folds or fold
        out of range.
    """
    order = _listed(dataset, label_ids, prefix) if label_ids else None
    available = dataset.sizes.get("train", 0) if order is None else len(order)
    if labels > available:
        raise UserError(
            f"config.{prefix}labels={labels} is more than the {available} labelled "
            f"images of {label_ids or dataset.name}. Use at most {available}, or 0 for all."
        )
    if order is None:
        ids = dataset.labelled_ids(labels or available, draw=draw)
    else:
        ids = order[: labels or available]
    if not folds:
        if fold:
            raise UserError(
                f"config.{prefix}fold={fold} says which fold to leave out, but "
                f"config.{prefix}folds=0: set config.{prefix}folds, e.g. to 3"
            )
        return dataset, ids
    return resplit.with_fold(dataset, ids, folds=folds, fold=fold)


def _listed(dataset: AngioDataset, path: str, prefix: str) -> list[str]:
    """The ids of a file, all of which must be in train."""
    key = f"{prefix}label_ids"
    ids = id_lists.read(path, key=key)
    split_of = {i: split for split in dataset.sizes for i in dataset.ids(split)}
    others = [i for i in ids if split_of.get(i) != "train"]
    if others:
        where = split_of.get(others[0])
        place = f"is in its split {where}" if where else "is not in it"
        raise UserError(
            f"config.{key}={path}: {len(others)} of its {len(ids)} images are not labelled images "
            f"of train of {dataset.name}: '{others[0]}' {place}. Build the data set again with "
            "their masks; a manifest decides what goes into train."
        )
    return ids


def size_of(dataset: AngioDataset, split: str, *, key: str) -> int:
    """Returns the number of images of `split` ('a+b' adds), which must not be empty.

    Raises:
      UserError: if no part of it exists; names the key and what there is.
    """
    parts = [part.strip() for part in split.split("+")]
    count = sum(dataset.sizes.get(part, 0) for part in parts)
    if not count:
        hint = "".join(_MADE_BY[part] for part in parts if part in _MADE_BY)
        have = ", ".join(f"{name} ({n})" for name, n in dataset.sizes.items())
        raise UserError(
            f"config.{key}='{split}' is empty in {dataset.name}. It has: {have or 'nothing'}.{hint}"
        )
    return count
