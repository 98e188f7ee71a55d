"""Runs one stage: `python -m cmunet_jax.main --config configs/pretrain.py [--config.x.y=VALUE]`.

This file is kept short on purpose: flags, device set-up and dispatch on `config.stage`.
"""

import os
import pathlib
import runpy
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from cmunet_jax import config as config_lib
from cmunet_jax import malloc
from tfds_angio.errors import UserError
from tfds_angio.paths import absolute

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
_SHORT = {"--dry-run": "--config.dry_run=True", "--dry_run": "--config.dry_run=True"}

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with optional arguments: configs/pretrain.py:size=small"
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where results go; the same folder resumes a run. Default runs/<stage>; of an evaluation a "
    "folder beside its checkpoint.",
)


def spell_out(argv: Sequence[str]) -> list[str]:
    """The command line with short spellings of keys replaced by the keys."""
    return [_SHORT.get(text, text) for text in argv]


def _split_path(argv: Sequence[str]) -> tuple[str, str | None]:
    """Returns (path, argument) of --config in argv, or raises a UserError."""
    for i, text in enumerate(argv):
        name, equals, value = text.lstrip("-").partition("=")
        if text.startswith("-") and name == "config":
            value = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
            path, _, arg = value.partition(":")
            return path, arg or None
    raise UserError("--config is missing. Start with: --config configs/quickstart.py")


def _check_overrides(argv: Sequence[str], path: str, arg: str | None) -> None:
    """Loads the config by itself, so that each mistake gets a line of its own."""
    if not os.path.isfile(path):
        beside = sorted(p.name for p in pathlib.Path(path).parent.glob("*.py"))
        raise UserError(
            f"--config {path}: no such file{config_lib.suggestion(os.path.basename(path), beside)}"
        )
    try:
        get_config = runpy.run_path(path)["get_config"]
    except (KeyError, SyntaxError) as error:
        reason = "it defines no get_config" if isinstance(error, KeyError) else f"{error}"
        raise UserError(f"--config {path} is not a config: {reason}.") from None
    config = get_config(arg)
    known = dict(config_lib.flatten(config))
    groups = {k.rsplit(".", i)[0] for k in known for i in range(1, k.count(".") + 1)}
    for text in argv:
        if text.startswith(("--config.", "-config.")):
            key = text.lstrip("-").partition("=")[0].removeprefix("config.")
            if key not in known and key not in groups:
                near = config_lib.suggestion(key, list(known))
                raise UserError(f"config.{key} is not a key of {path}{near}")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; every mistake becomes one UserError line."""
    if any(a in ("--help", "-h", "--helpshort", "--helpfull") for a in argv):
        return FLAGS(list(argv))
    path, arg = _split_path(argv)
    # Configs import configs.common, wherever the command is run from.
    sys.path.insert(0, str(pathlib.Path(path).resolve().parent.parent))
    _check_overrides(argv, path, arg)
    try:
        rest = FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).replace("flag --", "").split())) from None
    if len(rest) > 1:
        raise UserError(
            f"argument '{rest[1]}' is not understood. Overrides look like --config.seed=1"
        )
    return rest


def _workdir(value: str | None, stage: str) -> pathlib.Path | str | None:
    """The folder of --workdir, or its URL, which only a sweep understands."""
    if not value:
        return None
    if "://" not in value:
        return absolute(value)
    if stage != "sweep":
        raise UserError(
            f"--workdir {value}: stage {stage} writes to a folder; only a sweep takes a URL."
        )
    return value


def dispatch(argv: Sequence[str]) -> int:
    """Runs the stage that the config names; returns the exit status."""
    del argv
    config = _CONFIG.value
    config_lib.check(config)
    workdir = _workdir(_WORKDIR.value, config.stage)
    # Imported late: a mistake in the command should not wait for jax to load.
    from cmunet_jax import stages
    from cmunet_jax.stages import devices, hosts

    run = stages.STAGES[config.stage]
    if config.stage in stages.WITHOUT_DEVICE:
        return run(config, workdir)
    devices.set_up(config)
    with hosts.together():
        return run(config, workdir)


def main() -> None:
    """Entry point: a UserError is one line on stderr and exit status 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    try:
        sys.argv = spell_out(sys.argv)  # where config flags look for overrides
        rest = parse_flags(sys.argv)
        app.run(dispatch, argv=rest, flags_parser=lambda argv: list(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    malloc.restart("cmunet_jax.main")
    main()
