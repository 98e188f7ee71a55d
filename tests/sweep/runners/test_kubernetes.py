"""The Kubernetes manifest: what the schemas say, and what the pods would do."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cmunet_jax import main
from cmunet_jax.sweep.runners import kubernetes
from cmunet_jax.train import loop
from tfds_angio.errors import UserError

ARGUMENTS = ["--config=configs/sweep.py", "--workdir=gs://b/s", "--config.runner=worker"]
# 1.29 is the oldest in which a budget of retries for each index is on without asking.
VERSIONS = ("1.29", "1.31", "1.33", "1.35", "1.37")
FORMS = {
    "gpu": {"claim": "storage", "service_account": "worker", "priority_class": "batch"},
    "tpu": {"accelerator": "tpu", "bucket": "hearts", "spot": True, "namespace": "study"},
    "cpu": {"accelerator": "cpu", "node_selector": "disk=ssd,zone=a"},
}


def _job(arguments=ARGUMENTS, workers=3, **changes):
    options = kubernetes.default_options() | {"image": "r.example/c:1"} | changes
    return kubernetes.manifest(options, workers=workers, arguments=arguments)


def _read(job):
    return yaml.safe_load(kubernetes.render(job))


def _pod(job):
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_the_manifest_is_valid(form, version):
    job = _read(_job(**FORMS[form]))
    kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["completionMod"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_every_worker_is_one_index_with_its_own_retries():
    spec = _job(workers=5, retries=2, keep_hours=1)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 5)
    assert (spec["backoffLimitPerIndex"], spec["ttlSecondsAfterFinished"]) == (2, 3600)
    assert "backoffLimit" not in spec  # one for all would let a bad node end the study


def test_the_rules_follow_the_exit_statuses_of_main():
    rules = _job()["spec"]["podFailurePolicy"]["rules"]
    actions = {r["action"]: r["onExitCodes"]["values"] for r in rules if "onExitCodes" in r}
    assert actions == {"FailJob": [main.EXIT_USER_ERROR], "Ignore": [loop.EXIT_PREEMPTED]}
    assert rules[-1]["onPodConditions"][0]["type"] == "DisruptionTarget"
    pod = _pod(_job())
    assert pod["restartPolicy"] == "Never"  # the policy needs it
    assert {r["onExitCodes"]["containerName"] for r in rules[:2]} == {pod["containers"][0]["name"]}


def test_gpus_and_tpus_are_asked_for_where_they_are():
    resources = _pod(_job(gpus=2))["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "2"
    pod = _pod(_job(accelerator="tpu", tpu_topology="2x4", spot=True))
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == "8"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert {t["key"] for t in pod["tolerations"]} == {"google.com/tpu", "cloud.google.com/gke-spot"}


@pytest.mark.parametrize("form", FORMS)
def test_every_mount_has_its_volume(form):
    pod = _pod(_job(**FORMS[form]))
    mounts = {m["name"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_bucket_needs_its_annotation():
    metadata = _job(bucket="hearts")["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert "annotations" not in _job()["spec"]["template"]["metadata"]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_any_text_survives_the_yaml_and_the_kubelet(text):
    job = _read(_job(arguments=[f"--config.title={text}"]))
    (seen,) = _pod(job)["containers"][0]["args"]
    # The kubelet replaces $(NAME) and makes one dollar of two that stand before a bracket.
    assert "$(" not in seen.replace("$$(", "")
    assert seen.replace("$$(", "$(") == f"--config.title={text}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image", ""),
        ("accelerator", "gup"),
        ("name", "Sweep_1"),
        ("name", "a" * 60),
        ("claim", "my claim"),
        ("node_selector", "fast"),
        ("tpu_topology", "4x4"),
        ("tpu_topology", "big"),
    ],
)
def test_what_a_cluster_would_refuse_is_named_here(key, value):
    with pytest.raises(UserError, match=rf"config\.kubernetes\.{key}"):
        _job(**{"accelerator": "tpu", key: value})


def test_workers_must_share_their_folder():
    options = kubernetes.default_options()
    assert kubernetes.worker_workdir(options, "gs://b/s") == "gs://b/s"
    shared = options | {"claim": "c", "workdir": "/storage/s"}
    assert kubernetes.worker_workdir(shared, "/mine/s") == "/storage/s"
    for bad in (options, options | {"claim": "c"}, options | {"workdir": "/storage/s"}):
        with pytest.raises(UserError, match="pods do not share"):
            kubernetes.worker_workdir(bad, "/mine/s")
