"""What all tests share: a quiet CPU, one compilation cache, one tiny data set."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Set before anything imports jax. Tests compare numbers across runs, so they stay on the CPU even
# where an accelerator is installed; a caller who wants another platform sets it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")
# Most of the time goes into compiling the same small programs: they are kept between runs, for the
# subprocesses that tests start too. main would otherwise set a folder in the home directory.
os.environ.setdefault("CMUNET_JAX_CACHE", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["CMUNET_JAX_CACHE"])
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# XLA's own passes run as always; LLVM, which takes a third of the tests' time, optimises nothing.
# What users run is optimised: so are the demo and the tests of the golden values and of
# docs/clinical.md.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture(scope="session")
def shared() -> Callable[..., pathlib.Path]:
    """`shared('golden')` is ../shared/golden; where that is absent the test is skipped."""

    def locate(*parts: str) -> pathlib.Path:
        path = SHARED.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"../{path.relative_to(ROOT.parent)} is absent")
        return path

    return locate


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own, with `devices` fake CPU devices.

    The number of devices is fixed when jax starts, so a test that needs eight cannot share the
    process of the others.
    """

    def run(
        *args: str, devices: int = 1, timeout: float = 300, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        given = os.environ.get("XLA_FLAGS", "")
        flags = f"{given} --xla_force_host_platform_device_count={devices}".strip()
        # A PYTHONPATH of the caller would hide what the installed project itself needs.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, *args],
            cwd=ROOT,
            env=environment | {"XLA_FLAGS": flags} | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"python {' '.join(args)[:200]} exited {done.returncode}:\n{done.stderr}")
        return done

    return run


def start_python(*args: str, devices: int, **env: str) -> subprocess.Popen[str]:
    """Starts Python with `devices` fake CPU devices; what it prints is kept in pipes."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment | {"XLA_FLAGS": flags} | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory):
    """The `angio_synthetic/tiny` data set, built once a session; do not write into its folder."""
    from tfds_angio.base import build

    return build("angio_synthetic/tiny", data_dir=tmp_path_factory.mktemp("data"), progress=False)
