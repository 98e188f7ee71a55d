"""Devices that are not there, to compile for: `jax.experimental.topologies`.

Compilers need no device. For a TPU `pip install 'jax[tpu]'` brings its compiler, and a topology has
a name ('v5e:2x2', 'v5p:2x2x1'). For a GPU `pip install 'jax[cuda]'` does; a topology is
'cuda:N', N GPUs of one host, and a file describes the GPU: h200.txtpb, or one of XLA's own
(xla/backends/gpu/target_config/specs). Such a program can be read and not run.
"""

import argparse
import os
import pathlib
import re

import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --topology and --target."""
    parser.add_argument("--topology", default="", help="'v5e:2x2' or 'cuda:1'; '': what is there")
    parser.add_argument("--target", help="XLA's description of the GPU, a text file", default="")


def create_mesh(topology: str, target: str, count: int = 1):
    """A mesh of the first `count` devices of a topology; of all that are there for ''.

    Call it before anything that starts JAX: the devices that are there are CPUs then.
    """
    # Else libtpu asks a metadata server of a cloud for what the topology says.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

    import jax
    from jax.experimental import topologies

    from cmunet_jax.train import sharding

    if not topology:
        return sharding.create_mesh()
    jax.config.update("jax_platforms", "cpu")
    kind, _, shape = topology.partition(":")
    if kind == "cuda":
        if not target:
            raise SystemExit("--topology cuda:N needs --target: tests/benchmark/h200.txtpb is one")
        described = {"topology": f"1x1x{shape}", "target_config": pathlib.Path(target).read_text()}
        devices = topologies.get_topology_desc("", "cuda", **described).devices
    else:
        devices = topologies.get_topology_desc(topology, "tpu").devices
    if len(devices) < count:
        raise SystemExit(
            f"--topology {topology} has {len(devices)} devices, and {count} are wanted"
        )
    axes = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.array(devices[:count]), (sharding.AXIS,), axis_types=axes)


def cost(text: str) -> str:
    """What an optimised HLO module will cost, as far as its text tells; '' for a CPU's.

    Of a TPU's the cycles that its compiler expects. Of a GPU's with convolutions the operations of
    the entry, one kernel or library call each, and the bytes of the arrays that they take and
    give; an operand counts whole even where only a part of it is read. Of loops neither knows how
    often they run: take a step of one pass.
    """
    # Here, as JAX must not be imported before a caller has said which devices it may start.
    from cmunet_jax.train import communication

    if cycles := re.findall(r'"estimated_cycles":"(\d+)"', text):
        return f"{sum(map(int, cycles)) / 1e6:.1f} M cycles"
    if "__cudnn$" not in text:
        return ""
    types = {m[1]: m[2] for m in _INSTRUCTION.finditer(text)}
    entry = text[text.index("\nENTRY ") :]
    count = total = 0
    for _, result, kind, operands in _INSTRUCTION.findall(entry):
        if kind in _FREE or kind.endswith("-done"):
            continue
        count += 1
        taken = (types.get(name, "") for name in re.findall(r"%([\w.\-]+)", operands))
        total += sum(communication.nbytes(communication.arrays_of(t)) for t in (result, *taken))
    return f"{count} kernels take and give {total / 1e9:.1f} GB"


_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)", re.M)
_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all")
