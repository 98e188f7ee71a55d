"""Kubernetes: an Indexed Job whose pods are workers of the sweep, on a pool of GPUs or of TPUs.

`config.runner=kubernetes` writes the manifest and prints the `kubectl apply` for it; nothing is
sent to a cluster. A pod claims trials until none is left. The fields that treat a pod's exit status
are stable since Kubernetes 1.33 (backoffLimitPerIndex) and 1.31 (podFailurePolicy), and on by
default since 1.29 and 1.26.
"""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import yaml

from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.runners import command
from cmunet_jax.sweep.store import open_store
from tfds_angio.errors import UserError

FOLDER = "kubernetes"
STORAGE, BUCKET = "/storage", "/bucket"  # where the claim and the bucket are mounted
# Exit statuses of cmunet_jax.main: a mistake of the user; preempted, with the state saved.
USER_ERROR, PREEMPTED = 2, 75
_CONTAINER = "worker"
_DEVICES = {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu", "cpu": ""}
# A pod's name is <job>-<index>-<suffix>, and its host name <job>-<index> has 63 characters at most.
_NAME = r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?"


def default_options() -> dict[str, Any]:
    """Returns the default of `config.kubernetes`."""
    return {
        "max_workers": 4,  # pods, each with devices of its own
        "name": "cmunet-sweep",
        "namespace": "",  # empty: that of kubectl's context
        "image": "",  # of launch/kubernetes/Dockerfile, in your registry
        "accelerator": "gpu",  # gpu, tpu or cpu
        "gpus": 1,  # of one pod
        "tpu_type": "tpu-v5-lite-podslice",  # the label gke-tpu-accelerator of the node pool
        "tpu_topology": "2x2",  # one host: 1x1, 2x2, 2x4 or 2x2x1
        "node_selector": "",  # more labels of the nodes: 'key=value,key=value'
        "spot": False,  # on GKE: nodes that may be taken away, for less
        "cpus": "8",  # requests of one pod
        "memory": "32Gi",
        "scratch": "20Gi",  # on the node's disk: runs that are on their way to the bucket
        "service_account": "",  # of Kubernetes, with access to the bucket
        "claim": "",  # a ReadWriteMany volume claim, mounted at /storage
        "bucket": "",  # on GKE: a bucket mounted read-only at /bucket, for the data sets
        "workdir": "",  # the sweep as pods see it; empty: --workdir
        "data_dir": "",  # config.data.dir as pods see it: /storage/data or /bucket/data
        "priority_class": "",
        "grace_seconds": 180,  # between SIGTERM and SIGKILL; to save a checkpoint
        "retries": 3,  # of a worker that dies for a reason that no rule below names
        "keep_hours": 168,  # of the finished Job and its logs
    }


def run(plan: Sequence[Trial], config: ml_collections.ConfigDict, workdir: Path | str) -> int:
    """Writes the manifest and prints the command that applies it; see the module."""
    options = config.kubernetes.to_dict()
    if config.retry_failed and options["workdir"]:
        raise UserError(
            f"config.retry_failed needs the results, and {options['workdir']} is only seen by "
            "pods. Delete result.json and failures/ of the failed trials there."
        )
    left = command.trials_left(plan, config, open_store(workdir))
    if not left:
        return 0
    arguments = command.worker_arguments(
        sys.argv[1:],
        workdir=worker_workdir(options, str(workdir)),
        values={"data.dir": options["data_dir"]},
    )
    workers = command.count_workers("kubernetes.max_workers", left, options["max_workers"])
    job = manifest(options, workers=workers, arguments=command.of_checkout(arguments, Path.cwd()))
    path = command.launch_folder(workdir, FOLDER) / "job.yaml"
    command.write_text(path, render(job))
    print(f"{left} trials are left for {workers} workers: {path}")
    name = f"job/{options['name']}" + (
        f" --namespace={options['namespace']}" if options["namespace"] else ""
    )
    print(f"Start them with: kubectl apply -f {shlex.quote(str(path))}")
    print(f"Watch them: kubectl get {name} --watch; stop them: kubectl delete {name}")
    return 0


def manifest(
    options: Mapping[str, Any], *, workers: int, arguments: Sequence[str]
) -> dict[str, Any]:
    """Returns the Job.

    Args:
      options: as in `default_options`.
      workers: pods.
      arguments: of `cmunet_jax.main`, the image's entry point, for a worker.

    Raises:
      UserError: on an option that cannot work.
    """
    _check(options)
    labels = {"app.kubernetes.io/name": "cmunet-jax", "app.kubernetes.io/component": "sweep"}
    metadata: dict[str, Any] = {"name": options["name"], "labels": labels}
    if options["namespace"]:
        metadata["namespace"] = options["namespace"]
    pod_metadata: dict[str, Any] = {"labels": labels}
    if options["bucket"]:
        pod_metadata["annotations"] = {"gke-gcsfuse/volumes": "true"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": workers,
            "parallelism": workers,
            # A worker that keeps dying gives up alone; the others do its trials.
            "backoffLimitPerIndex": options["retries"],
            "ttlSecondsAfterFinished": options["keep_hours"] * 3600,
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": pod_metadata, "spec": _pod(options, arguments)},
        },
    }


def render(job: Mapping[str, Any]) -> str:
    """Returns the manifest as YAML."""
    return "# Written by config.runner=kubernetes; the next run of it writes it anew.\n" + (
        yaml.dump(job, Dumper=_PlainDumper, sort_keys=False, width=100)
    )


class _PlainDumper(yaml.SafeDumper):
    """Repeats what occurs twice: people read this, and anchors make that harder."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _check(options: Mapping[str, Any]) -> None:
    if options["accelerator"] not in _DEVICES:
        raise UserError(
            f"config.kubernetes.accelerator='{options['accelerator']}' is not known. "
            f"Choose one of: {', '.join(_DEVICES)}."
        )
    if not options["image"]:
        raise UserError(
            "config.kubernetes.image is empty. Build launch/kubernetes/Dockerfile, push it, and "
            "set --config.kubernetes.image=REGISTRY/cmunet-jax:TAG"
        )
    command.check_name("kubernetes.name", options["name"], _NAME, "cmunet-sweep")
    for key in ("namespace", "service_account", "claim", "priority_class"):
        if options[key]:
            command.check_name(
                f"kubernetes.{key}", options[key], r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "my-name"
            )
    if options["bucket"]:
        command.check_name("kubernetes.bucket", options["bucket"], r"[a-z0-9][\w.-]*", "my-bucket")


def _failure_rules() -> list[dict[str, Any]]:
    """What a failed pod means; the first rule that matches decides."""

    def on_exit(action: str, status: int) -> dict[str, Any]:
        codes = {"containerName": _CONTAINER, "operator": "In", "values": [status]}
        return {"action": action, "onExitCodes": codes}

    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return [
        # All workers have the same command: what is wrong with it is wrong for all.
        on_exit("FailJob", USER_ERROR),
        # SIGTERM came and the state was saved: run again, as often as it takes.
        on_exit("Ignore", PREEMPTED),
        # Evicted, preempted, or its node drained.
        {"action": "Ignore", "onPodConditions": [disrupted]},
    ]


def _pod(options: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    volumes, mounts = _volumes(options)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # a pod failure policy needs it
        "terminationGracePeriodSeconds": options["grace_seconds"],
        "containers": [
            {
                "name": _CONTAINER,
                "image": options["image"],
                # $(NAME) in an argument would be taken for a variable.
                "args": [text.replace("$(", "$$(") for text in arguments],
                "env": _environment(options),
                "resources": _resources(options),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    selector = _node_selector(options)
    tolerations = _tolerations(options)
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = tolerations
    if options["service_account"]:
        pod["serviceAccountName"] = options["service_account"]
    if options["priority_class"]:
        pod["priorityClassName"] = options["priority_class"]
    return pod


def _environment(options: Mapping[str, Any]) -> list[dict[str, str]]:
    # Compiled programs outlive the pod where something of it does.
    cache = f"{STORAGE}/xla" if options["claim"] else "/tmp/xla"  # noqa: S108 (the pod's own)
    return [
        {"name": "CMUNET_JAX_CACHE", "value": cache},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]


def _resources(options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    requests = {
        "cpu": str(options["cpus"]),
        "memory": options["memory"],
        "ephemeral-storage": options["scratch"],
    }
    limits = {"memory": options["memory"]}
    device = _DEVICES[options["accelerator"]]
    if device:
        # Devices cannot be shared or overcommitted, so the request is the limit.
        limits[device] = requests[device] = str(_device_count(options))
    return {"requests": requests, "limits": limits}


def _device_count(options: Mapping[str, Any]) -> int:
    if options["accelerator"] == "gpu":
        return options["gpus"]
    topology = command.check_name(
        "kubernetes.tpu_topology", options["tpu_topology"], r"\d+x\d+(x\d+)?", "2x2"
    )
    chips = math.prod(int(side) for side in topology.split("x"))
    if chips not in (1, 4, 8):
        raise UserError(
            f"config.kubernetes.tpu_topology={topology} has {chips} chips on several hosts, and a "
            "worker is one process on one host. Use 1x1, 2x2, 2x4 or 2x2x1 and more workers."
        )
    return chips


def _node_selector(options: Mapping[str, Any]) -> dict[str, str]:
    selector: dict[str, str] = {}
    if options["accelerator"] == "tpu":
        selector["cloud.google.com/gke-tpu-accelerator"] = options["tpu_type"]
        selector["cloud.google.com/gke-tpu-topology"] = options["tpu_topology"]
    if options["spot"]:
        selector["cloud.google.com/gke-spot"] = "true"
    for part in filter(None, options["node_selector"].split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise UserError(
                f"config.kubernetes.node_selector: '{part}' is not key=value, for example "
                "'cloud.google.com/gke-accelerator=nvidia-l4'."
            )
        selector[key] = value
    return selector


def _tolerations(options: Mapping[str, Any]) -> list[dict[str, str]]:
    device = _DEVICES[options["accelerator"]]
    keys = [device] if device else []
    keys += ["cloud.google.com/gke-spot"] if options["spot"] else []
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]


def _volumes(options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    # Processes that prepare images pass them through shared memory; the default is 64 MiB.
    memory = {"medium": "Memory", "sizeLimit": "4Gi"}
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": memory}]
    mounts: list[dict[str, Any]] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108
    if options["claim"]:
        claim = {"claimName": options["claim"]}
        volumes.append({"name": "storage", "persistentVolumeClaim": claim})
        mounts.append({"name": "storage", "mountPath": STORAGE})
    if options["bucket"]:
        attributes = {"bucketName": options["bucket"], "mountOptions": "implicit-dirs"}
        driver = {
            "driver": "gcsfuse.csi.storage.gke.io",
            "readOnly": True,
            "volumeAttributes": attributes,
        }
        volumes.append({"name": "bucket", "csi": driver})
        mounts.append({"name": "bucket", "mountPath": BUCKET, "readOnly": True})
    return volumes, mounts


def worker_workdir(options: Mapping[str, Any], workdir: str) -> str:
    """Returns the sweep's folder or bucket as the pods see it.

    Raises:
      UserError: if pods would write where nothing outlives them.
    """
    place = options["workdir"] or workdir
    if "://" in place or (options["claim"] and place.startswith(f"{STORAGE}/")):
        return place
    raise UserError(
        f"pods do not share {place}. Set --workdir=gs://BUCKET/sweep, or config.kubernetes.claim "
        f"to a ReadWriteMany volume claim and config.kubernetes.workdir={STORAGE}/sweep"
    )
