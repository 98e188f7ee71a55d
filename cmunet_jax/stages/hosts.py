"""Several processes as one run: how they find each other, and how they end when one is lost."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax.stages import environment
from cmunet_jax.train import loop, processes
from tfds_angio.errors import UserError

# EX_PROTOCOL: the processes did not meet, or one was lost. Starting all of them again resumes.
EXIT_LOST = 76
EXIT_INTERRUPTED = 130
NOTE_SECONDS = 30  # of waiting for the others, before a line says so
KINDS = ("off", "auto", "explicit")
# A process that is silent for so long is taken for dead; the others end with its number.
HEARTBEAT_SECONDS = 60
_SHUTDOWN_SECONDS = 60
_LINGER_SECONDS = 2.0
# What gloo, NCCL and the coordination service say when the other end is gone.
_LOST = re.compile(
    r"gloo|nccl|UNAVAILABLE|DEADLINE_EXCEEDED|coordination ?service|preempted|"
    r"connection (reset|closed|refused)|socket closed",
    re.IGNORECASE,
)


def start(config: ml_collections.ConfigDict) -> None:
    """Joins the processes of one run, as `config.distributed` says; 'off' does nothing.

    'explicit' takes the address and the numbers from `config.hosts`. 'auto' takes them from the
    environment: of Slurm (srun), of a TPU slice (on VMs or in Kubernetes), of Open MPI, or of an
    indexed Kubernetes Job whose pods are given JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES.
    To be called before anything else touches a device.

    Raises:
      UserError: if the config or the environment does not say enough.
    """
    kind = config_lib.choose("config.distributed", config.get("distributed", "off"), KINDS)
    if kind == "off":
        return
    where = _explicit(config.hosts) if kind == "explicit" else environment.detect()
    seconds = int(config.hosts.wait_seconds)
    # jax would wait for minutes and then abort with a C++ stack trace.
    watches = [threading.Timer(seconds, _give_up, args=(where, seconds))]
    if seconds > NOTE_SECONDS:
        watches.append(threading.Timer(NOTE_SECONDS, _note, args=(where, seconds)))
    for watch in watches:
        watch.daemon = True
        watch.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=seconds + 30,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        if "Failed to start RPC server" in str(error):
            _end_taken(where)
        raise UserError(_explain(kind, error)) from error
    finally:
        for watch in watches:
            watch.cancel()
    processes.notice_sigterm()


def announced(config: ml_collections.ConfigDict) -> int | None:
    """How many processes this one was told that there are; None if jax finds it out itself."""
    kind = config.get("distributed", "off")
    if kind == "off":
        return None
    where = _explicit(config.hosts) if kind == "explicit" else environment.detect()
    return where.get("num_processes")


def _explicit(hosts: ml_collections.ConfigDict) -> dict[str, Any]:
    """The arguments of jax.distributed.initialize from `config.hosts`."""
    if not environment.is_address(str(hosts.coordinator)):
        raise UserError(
            f"config.hosts.coordinator='{hosts.coordinator}' must be HOST:PORT of the first "
            "process (port 1 to 65535), for example 10.0.0.1:8476, the same in all processes."
        )
    if not 0 <= hosts.process < hosts.processes:
        raise UserError(
            f"config.hosts.process={hosts.process} of config.hosts.processes={hosts.processes}: "
            "give the number of processes, and to each its own from 0 on."
        )
    return environment.by_number(hosts.coordinator, int(hosts.processes), int(hosts.process))


def _explain(kind: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if kind == "explicit":
        return f"config.distributed=explicit cannot start: {reason}"
    if "should be defined" in reason or "must be defined" in reason:
        reason = "neither Slurm (srun), a TPU slice, Open MPI nor an indexed Kubernetes Job is here"
        reason += environment.missing()
    return (
        f"config.distributed=auto cannot start: {reason}. Leave it off for one process, or set "
        "config.distributed=explicit and config.hosts."
    )


def _give_up(where: dict[str, Any], seconds: int) -> NoReturn:
    """Ends this process, which is stuck inside jax, with one line."""
    try:
        remedy = (
            "Start all at the same time, each with its own number, and check address, port and "
            "firewall (config.hosts.wait_seconds)"
        )
        sys.stderr.write(f"error: {_me(where)}{_absent(where)} within {seconds} s. {remedy}.\n")
        sys.stderr.flush()
    finally:
        os._exit(EXIT_LOST)


def _note(where: dict[str, Any], seconds: int) -> None:
    """Says once what is waited for, where that may take long: a pod may have to pull its image."""
    text = f"{_me(where)}still waiting, for {seconds} s at most: {_absent(where)} yet.\n"
    sys.stderr.write(text)
    sys.stderr.flush()


def _end_taken(where: dict[str, Any]) -> NoReturn:
    address = where.get("coordinator_address", "the coordinator")
    print(
        f"error: {_me(where)}the port of {address} is taken on this machine, perhaps by a run that "
        "is ending. Start all again, or choose another port.",
        file=sys.stderr,
    )
    sys.exit(EXIT_LOST)


def _me(where: dict[str, Any]) -> str:
    index = where.get("process_id")
    return "" if index is None else f"process {index} of {where['num_processes']}: "


def _absent(where: dict[str, Any]) -> str:
    """Who did not come, as far as it can be seen from here."""
    address = where.get("coordinator_address")
    if not address:
        return "the processes did not all reach the coordinator"
    if silence := _silence(address):
        return f"no coordinator answers at {address} ({silence})"
    return f"{address} answers, but not all processes came (or two have one number)"


def _silence(address: str) -> str:
    """Why nothing can be reached at HOST:PORT, or ''."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, OverflowError) as error:  # what is no name of a host, no port
        return str(error)
    return ""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Runs a stage in a process that may be one of several.

    Only the first one prints to standard output. An error ends the process at once instead of
    waiting for the others, who notice that it is gone and end too: with status EXIT_LOST, or
    aborted by jax, at the latest after HEARTBEAT_SECONDS.
    """
    if jax.process_count() == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not processes.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield
        except BaseException as error:
            _leave(error)


def _leave(error: BaseException) -> NoReturn:
    """Says why and ends; Python's own exit would wait for the others to come to theirs."""
    me, status = processes.me(), 1
    ours = isinstance(error, (processes.Apart, processes.Interrupted))
    if not ours and (lost := _lost(error)):
        line = f"{me}: another process of this run is gone, see its output ({lost})."
        print(f"error: {line} Start all of them again to resume.", file=sys.stderr)
        status = EXIT_LOST
    elif isinstance(error, processes.Apart):
        print(f"error: {me}: {error}", file=sys.stderr)
        status = EXIT_LOST
    elif isinstance(error, processes.Interrupted):
        print(f"{me}: {error}", file=sys.stderr)
        status = loop.EXIT_PREEMPTED
    elif isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
        if processes.is_first():  # Others with the same mistake would be aborted as it goes.
            time.sleep(_LINGER_SECONDS)
    elif isinstance(error, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    else:
        print(f"{me}:", file=sys.stderr)
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lost(error: BaseException | None) -> str:
    """The first words of an error that comes from a lost process, looking at its causes; or ''."""
    while error is not None:
        text = " ".join(str(error).split())
        ours = isinstance(error, UserError)  # which quotes its cause, and is looked at next
        if not ours and isinstance(error, Exception) and _LOST.search(text):
            return text if len(text) <= 160 else text[:157] + "..."
        error = error.__cause__ or error.__context__
    return ""
