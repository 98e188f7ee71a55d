"""What a measurement was made on, and how busy that was."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import jax
import psutil

_CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, devices, malloc's settings, the competitor's version or ''."""
    return {
        "processor": _processor(),
        "cores_usable": usable_cores(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
        "virtual": "hypervisor" in _cpu_flags(),
        "torch": _torch(),
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cores(count: int) -> None:
    """Keeps this process, and the threads and processes it starts later, on `count` cores.

    Before JAX starts its threads. 0 changes nothing; nor does a system that has no such call.
    """
    if count and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def load() -> float | None:
    """Processes that wanted to run, averaged over the last minute; above the cores: shared."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _field(name: str) -> str:
    if not _CPUINFO.is_file():
        return ""
    lines = _CPUINFO.read_text().splitlines()
    found = (line.partition(":") for line in lines if line.startswith(name))
    return next((value.strip() for _, _, value in found), "")


def _processor() -> str:
    return _field("model name") or os.uname().machine


def _cpu_flags() -> list[str]:
    return _field("flags").split()


def _torch() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""
