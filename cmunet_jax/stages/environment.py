"""How the processes of one run find each other by what their scheduler sets in the environment."""

import os
import re
from typing import Any

from tfds_angio.errors import UserError

_REMEDY = (
    "Correct it, or leave config.distributed off for one process, or set "
    "config.distributed=explicit and config.hosts"
)
POD = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JOB_COMPLETION_INDEX")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = "OMPI_MCA_orte_hnp_uri"
_TPU_NUMBERS = ("TPU_WORKER_ID", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
_FIRST_PORT, _PORTS = 65535 - 2**12 + 1, 2**12  # where jax chooses one by the number of the job


def is_address(text: str) -> bool:
    """Whether this is HOST:PORT with a port that exists."""
    host, _, port = text.rpartition(":")
    return bool(host.strip("[]")) and is_number(port, 1, 65535) and not re.search(r"\s", text)


def is_number(text: str, least: int = 0, most: float = float("inf")) -> bool:
    """Whether these are plain digits (not ², which str.isdigit takes) of a number in a range."""
    return text.isascii() and text.isdigit() and least <= int(text) <= most


def by_number(address: str, count: int, index: int) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize that leave nothing to be found out."""
    return dict(
        coordinator_address=address,
        num_processes=count,
        process_id=index,
        cluster_detection_method="deactivate",
    )


def detect() -> dict[str, Any]:
    """Arguments of jax.distributed.initialize; {} where jax finds them out itself (TPU).

    Of Open MPI and Slurm the same as jax would find, which names no variable in its errors.

    Raises:
      UserError: naming a variable that is wrong, its value and the remedy.
    """
    env = os.environ
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"):
        if env.get(name) and not is_address(env[name]):
            raise _wrong(name, "HOST:PORT, for example job-0-0.job:8476")
    if env.get("JAX_COORDINATOR_PORT"):
        _number("JAX_COORDINATOR_PORT", 1, 65535)
    if not all(is_number(i.strip()) for i in env.get("JAX_LOCAL_DEVICE_IDS", "0").split(",")):
        raise _wrong("JAX_LOCAL_DEVICE_IDS", "numbers of devices, for example 0,1")
    if all(env.get(name) for name in POD):
        # jax would ask the Kubernetes API, which takes a package and the right to read pods.
        return _numbered(env[POD[0]], POD[1], POD[2])
    if _OPEN_MPI in env:
        where = _numbered(_of_open_mpi(), "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
        return where | _own_devices("OMPI_COMM_WORLD_LOCAL_RANK")
    if all(name in env for name in _SLURM):
        # jax would take one GPU a process, by its number on the node: wrong where Slurm shows a
        # process only its own. Each takes all that it is shown.
        where = _numbered(_of_slurm(), "SLURM_NTASKS", "SLURM_PROCID")
        shown = env.get("CUDA_VISIBLE_DEVICES")
        if shown and not env.get("JAX_LOCAL_DEVICE_IDS"):
            return where | {"local_device_ids": list(range(len(shown.split(","))))}
        return where | _own_devices("SLURM_LOCALID")
    for name in _TPU_NUMBERS:
        if env.get(name):
            _number(name)
    return {}


def _numbered(address: str, count: str, index: str) -> dict[str, Any]:
    where = by_number(address, _number(count, 1), _number(index))
    if where["process_id"] >= where["num_processes"]:
        raise _wrong(index, f"below {count}={os.environ[count]}")
    return where


def _own_devices(local: str) -> dict[str, Any]:
    """One GPU a process, by its number on the machine, unless the variable of jax says which."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return {}
    return {"local_device_ids": [_number(local)]}


def _of_slurm() -> str:
    """The first node of 'node001', 'node001,host2', 'node[001-015],host2', and the port."""
    chosen = os.environ.get("JAX_COORDINATOR_ADDRESS")
    job, nodes = _number("SLURM_JOB_ID"), os.environ["SLURM_STEP_NODELIST"]
    first = re.match(r"([^\s,\[\]]*)(?:\[(\d+)[^\]]*\])?", nodes)
    host = "".join(part or "" for part in first.groups()) if first else ""
    if not host:
        raise _wrong("SLURM_STEP_NODELIST", "a list of nodes, for example node[001-004]")
    return chosen or f"{host}:{_port(job)}"


def _of_open_mpi() -> str:
    """The machine of mpirun, of '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911', and the port."""
    chosen = os.environ.get("JAX_COORDINATOR_ADDRESS")
    uri = os.environ[_OPEN_MPI]
    found = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri, re.ASCII)
    if not found:
        raise _wrong(_OPEN_MPI, "NUMBER.0;tcp://ADDRESS:PORT, as mpirun sets it")
    # The number of a job is a multiple of 2^12.
    return chosen or f"{found[2] or found[3]}:{_port(int(found[1]) // 2**12)}"


def _port(job: int) -> str:
    return os.environ.get("JAX_COORDINATOR_PORT") or str(job % _PORTS + _FIRST_PORT)


def _number(name: str, least: int = 0, most: float = float("inf")) -> int:
    if not is_number(os.environ.get(name, ""), least, most):
        limit = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"
        raise _wrong(name, f"a whole number {limit}")
    return int(os.environ[name])


def _wrong(name: str, wanted: str) -> UserError:
    value = os.environ.get(name)
    shown = f"{name} is not set" if value is None else f"{name}='{' '.join(value.split())[:100]}'"
    return UserError(
        f"config.distributed=auto reads the environment, where {shown}; it must be {wanted}. "
        f"{_REMEDY}."
    )


def missing() -> str:
    """The variables of a numbered pod that are not set, where some are; or ''."""
    unset = [name for name in POD if not os.environ.get(name)]
    return f" ({', '.join(unset)} not set)" if len(unset) < len(POD) else ""
