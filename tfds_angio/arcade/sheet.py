"""Contact sheet of the pairs just above and below the threshold, to judge it by eye.

    python -m tfds_angio.arcade.sheet --source PATH --output sheet.png [--around 0.25] [--pairs 12]

Each row shows two images, their ids, the correlation and what the threshold makes of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from tfds_angio import base
from tfds_angio.arcade import builder, layout, near_duplicates

_TILE = 300
_COLUMNS = 3


def borderline(
    pairs: Sequence[near_duplicates.Pair], *, threshold: float, count: int
) -> list[near_duplicates.Pair]:
    """The `count` pairs next to the threshold on each side, strongest first."""
    above = [p for p in pairs if p.correlation >= threshold]
    below = [p for p in pairs if p.correlation < threshold]
    return above[-count:] + below[:count]


def _tile(images: Sequence[np.ndarray], title: str) -> np.ndarray:
    resized = [cv2.resize(i, (_TILE, _TILE), interpolation=cv2.INTER_AREA) for i in images]
    bar = np.zeros((20, 2 * _TILE), np.uint8)
    cv2.putText(bar, title, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)
    return np.pad(np.vstack([bar, np.hstack(resized)]), 4)


def write_sheet(source: Path, output: Path, *, threshold: float, count: int) -> int:
    """Writes the sheet as an image file; returns the number of pairs on it."""
    archive = layout.open_archive(source)
    records, _, _ = builder.items(archive)
    found = builder.signatures(archive, records)
    pairs = near_duplicates.find_pairs(found, threshold=max(0.0, threshold - 0.15))
    shown = borderline(pairs, threshold=threshold, count=count)
    if not shown:
        raise base.UserError(f"no pair near a correlation of {threshold} in {source}")
    tiles = []
    for pair in shown:
        first, second = records[pair.first], records[pair.second]
        verdict = "same" if pair.correlation >= threshold else "different"
        title = f"{first.id} | {second.id}  r {pair.correlation:.3f} ham {pair.hamming}: {verdict}"
        tiles.append(_tile([layout.load_image(archive, r) for r in (first, second)], title))
    while len(tiles) % _COLUMNS:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)]
    if not cv2.imwrite(str(output), np.vstack(rows)):
        raise base.UserError(f"--output {output} cannot be written")
    return len(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--around", type=float, default=0.25, help="correlation threshold")
    parser.add_argument("--pairs", type=int, default=12, help="pairs on each side")
    args = parser.parse_args(arguments)
    try:
        if args.output.suffix.lower() not in (".png", ".jpg"):
            raise base.UserError(f"--output {args.output} must end in .png or .jpg")
        if not args.output.absolute().parent.is_dir():
            raise base.UserError(f"folder of --output {args.output} does not exist")
        count = write_sheet(args.source, args.output, threshold=args.around, count=args.pairs)
    except base.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} pairs: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
