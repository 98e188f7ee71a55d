"""Results are made beside their place, so that a stage that fails leaves nothing behind."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from tfds_angio.errors import UserError


@contextlib.contextmanager
def inside(target: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """A folder in `target`, gone afterwards; so is `target` if nothing came of it.

    Args:
      target: where the results will be; made if it does not exist.
      name: of the stage, for the name of the folder: .NAME-...

    Raises:
      UserError: if `target` cannot be written.
    """
    made: list[pathlib.Path] = []
    try:
        # What this makes is taken away again; what was there stays.
        made += [path for path in (target, *target.parents) if not path.exists()]
        target.mkdir(parents=True, exist_ok=True)
        staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # it holds the results
                path.rmdir()
