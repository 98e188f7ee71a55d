"""Finds or builds the data set that a config names."""

import ml_collections

from tfds_angio import options as option_parser
from tfds_angio.base import AngioDataset, build, open_dataset
from tfds_angio.errors import UserError

EMBEDDED = "angio_synthetic"


def open_or_build(options: ml_collections.ConfigDict) -> AngioDataset:
    """Opens `options.name` under `options.dir`, building it first where that is possible.

    The synthetic set needs no source and is always built on demand; others are built when
    `options.source` names the user's files.

    Raises:
      UserError: if the set is neither there nor can be built.
    """
    if options.source or options.name.split("/")[0] == EMBEDDED:
        return build(
            options.name,
            data_dir=options.dir,
            source=options.source or None,
            options=option_parser.from_command_line(options.options.split()),
            workers=options.workers or None,
        )
    return open_dataset(options.name, data_dir=options.dir)


def size_of(dataset: AngioDataset, split: str, *, key: str) -> int:
    """Returns the number of images of `split` ('a+b' adds), which must not be empty.

    Raises:
      UserError: if no part of it exists; names the key and what there is.
    """
    parts = [part.strip() for part in split.split("+")]
    count = sum(dataset.sizes.get(part, 0) for part in parts)
    if not count:
        have = ", ".join(f"{name} ({n})" for name, n in dataset.sizes.items())
        raise UserError(
            f"config.{key}='{split}' is empty in {dataset.name}. It has: {have or 'nothing'}."
        )
    return count
