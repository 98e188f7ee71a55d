"""Command line: `python -m tfds_angio.build NAME [--data_dir data] [--source PATH] [--option k=v]`.

Prints what was built and where. An error is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from tfds_angio import base, options, prepare, registry
from tfds_angio.dataset import INDEX


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise base.UserError(f"{message}; see --help")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m tfds_angio.build", description=__doc__.splitlines()[0])
    parser.add_argument("name", help=f"one of {', '.join(registry.BUILDERS)} (or NAME/CONFIG)")
    parser.add_argument("--data_dir", default="data", help="root of the data sets")
    parser.add_argument("--source", help="local folder or archive")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--options", action="store_true", help="list the options of NAME and stop")
    parser.add_argument("--workers", type=int, help="processes (default: all processors)")
    parser.add_argument("--rebuild", action="store_true", help="replace what is there")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser


def _list_options(name: str) -> None:
    declared = registry.builder_class(registry.split_name(name)[0]).OPTIONS
    for key, option in declared.items():
        print(f"{key}={option.default}    {option.help}")
    if not declared:
        print(f"{name} has no options")


def _run(arguments: Sequence[str] | None) -> None:
    args = _parser().parse_args(arguments)
    if args.options:
        _list_options(args.name)
        return
    given = options.from_command_line(args.option)
    directory = prepare.version_directory(args.name, args.data_dir)
    before = (directory / INDEX).is_file() and not args.rebuild
    dataset = base.build(
        args.name,
        data_dir=args.data_dir,
        source=args.source,
        options=given,
        workers=args.workers,
        progress=not args.no_progress,
        rebuild=args.rebuild,
    )
    counts = ", ".join(f"{split} {size}" for split, size in dataset.sizes.items())
    if before:
        print(f"{args.name} is already there ({counts}): {dataset.directory}")
        return
    for note in dataset.metadata["notes"]:
        print(note)
    print(f"{args.name} built ({counts}): {dataset.directory}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status (0, or 2 with one line on stderr)."""
    try:
        _run(arguments)
    except base.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
