"""The scripts for TPU VMs, run with stand-ins for gcloud and the machine."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tarfile

import pytest

from cmunet_jax.sweep.runners import tpu_vm
from tfds_angio.errors import UserError

ARGUMENTS = ["--config=configs/sweep.py", "--workdir=gs://b/s", "--config.runner=worker"]
NASTY = 'it\'s $(touch pwned) `touch pwned` "x" ; & | * \\ é'


def _options(**changes):
    return tpu_vm.default_options() | {"zone": "us-west4-a"} | changes


def _write(folder: pathlib.Path, *, arguments=ARGUMENTS, checkout=None, workers=2, **changes):
    options = _options(**changes)
    texts = {
        tpu_vm.STARTUP: tpu_vm.startup_script(options, workdir="gs://b/s", arguments=arguments),
        tpu_vm.CONTROL: tpu_vm.control_script(
            options,
            workdir="gs://b/s",
            workers=workers,
            checkout=checkout or folder,
            data_dir=folder / "da ta",
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _stand_in(folder: pathlib.Path, name: str, body: str = "") -> None:
    """A program that notes how it was called, one argument a line, then does `body`."""
    folder.mkdir(exist_ok=True)
    note = f'printf "%s\\n" "--- {name}" "$@" >> "{folder}/calls"'
    (folder / name).write_text(f"#!/usr/bin/env bash\n{note}\n{body}\n")
    (folder / name).chmod(0o755)


def _calls(folder: pathlib.Path) -> list[str]:
    """Each call of a stand-in as one line."""
    path = folder / "calls"
    text = path.read_text() if path.exists() else ""
    return [" ".join(part.split("\n")).strip() for part in text.split("--- ")[1:]]


def _run(folder, *command, **env):
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"} | env
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("changes", [{}, {"spot": True, "delete_when_done": False}])
def test_the_scripts_parse_and_pass_shellcheck(tmp_path, changes):
    _write(tmp_path, arguments=[NASTY], project="p", service_account="a@b", **changes)
    for name in (tpu_vm.STARTUP, tpu_vm.CONTROL):
        done = subprocess.run(["bash", "-n", name], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = _run(tmp_path, "shellcheck", tpu_vm.STARTUP, tpu_vm.CONTROL)
    assert done.returncode == 0, done.stdout


def test_a_request_for_each_worker(tmp_path):
    _stand_in(tmp_path / "bin", "gcloud")
    _write(tmp_path, spot=True, project="p 1", service_account="me@x", valid_for="12h")
    done = _run(tmp_path, f"./{tpu_vm.CONTROL}", "create")
    assert done.returncode == 0, done.stderr
    first, second = _calls(tmp_path / "bin")
    assert first == (
        "gcloud compute tpus queued-resources create cmunet-sweep-0 --node-id cmunet-sweep-0 "
        "--accelerator-type=v5litepod-4 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--service-account=me@x --valid-until-duration=12h "
        "--metadata cmunet-name=cmunet-sweep-0,cmunet-zone=us-west4-a "
        "--metadata-from-file startup-script=startup.sh --zone us-west4-a --project p 1"
    )
    assert "create cmunet-sweep-1 --node-id cmunet-sweep-1" in second


def test_only_what_was_taken_away_is_asked_for_again(tmp_path):
    states = 'case "$*" in *describe*-0*) echo ACTIVE;; *describe*-1*) echo SUSPENDED;; esac'
    _stand_in(tmp_path / "bin", "gcloud", states)
    _write(tmp_path, workers=3)
    assert _run(tmp_path, f"./{tpu_vm.CONTROL}", "renew").returncode == 0
    changing = [call.split()[4:6] for call in _calls(tmp_path / "bin") if "describe" not in call]
    assert changing == [["delete", "cmunet-sweep-1"], ["create", "cmunet-sweep-1"]]


def test_delete_gives_back_what_there_is(tmp_path):
    _stand_in(tmp_path / "bin", "gcloud", 'case "$*" in *describe*-1*) echo FAILED;; esac')
    _write(tmp_path, workers=3)
    assert _run(tmp_path, f"./{tpu_vm.CONTROL}", "delete").returncode == 0
    changing = [call for call in _calls(tmp_path / "bin") if "describe" not in call]
    assert len(changing) == 1 and "delete cmunet-sweep-1 --force --quiet" in changing[0]
    status = _run(tmp_path, f"./{tpu_vm.CONTROL}", "status").stdout.splitlines()
    assert status[0] == "cmunet-sweep-0: given back, or never asked for"
    assert status[1] == "cmunet-sweep-1: FAILED"


def test_upload_takes_the_last_commit_and_the_data(tmp_path):
    _stand_in(tmp_path / "bin", "gcloud")
    _stand_in(tmp_path / "bin", "git")
    checkout = tmp_path / NASTY.replace("/", "")
    checkout.mkdir()
    _write(tmp_path, checkout=checkout)
    done = _run(tmp_path, f"./{tpu_vm.CONTROL}", "upload")
    assert done.returncode == 0, done.stderr
    git, code, data = _calls(tmp_path / "bin")
    assert git.startswith(f"git -C {checkout} archive") and git.endswith("HEAD")
    assert code.endswith("gs://b/cmunet-jax/code.tar.gz")
    assert data == f"gcloud storage rsync --recursive {tmp_path}/da ta gs://b/cmunet-jax/data"
    assert not list(tmp_path.rglob("pwned"))


def test_an_unknown_word_shows_the_usage(tmp_path):
    _write(tmp_path)
    done = _run(tmp_path, f"./{tpu_vm.CONTROL}", "dance")
    assert done.returncode == 2 and "what stops the bill" in done.stderr


def _boot(tmp_path, statuses, **changes):
    """Boots a pretended VM, whose worker ends with `statuses`, one after another."""
    archive = tmp_path / "code.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        (tmp_path / "Makefile").write_text("")
        tar.add(tmp_path / "Makefile", "Makefile")
    work = (
        f'echo x >> "{tmp_path}/runs"; sed -n "$(wc -l < "{tmp_path}/runs")p" "{tmp_path}/statuses"'
    )
    (tmp_path / "statuses").write_text("".join(f"{s}\n" for s in statuses))
    _stand_in(
        tmp_path / "vm", "python", f'printf "%s\\n" "$@" > "{tmp_path}/seen"; exit "$({work})"'
    )
    venv = f'mkdir -p .venv/bin; cp "{tmp_path}/vm/python" .venv/bin/python'
    _stand_in(tmp_path / "bin", "make", venv)
    _stand_in(tmp_path / "bin", "python3")
    _stand_in(tmp_path / "bin", "curl", 'echo "${@: -1}" | sed "s|.*cmunet-|my-|"')
    copy = f'case "$*" in "storage cp gs://"*) cp "{archive}" "${{@: -1}}";; esac'
    _stand_in(tmp_path / "bin", "gcloud", copy)
    _write(tmp_path, **changes)
    home = {"CMUNET_HOME": str(tmp_path / "vm home"), "RETRY_SECONDS": "0"}
    return _run(tmp_path, f"./{tpu_vm.STARTUP}", **home), tmp_path / "vm home"


def test_a_vm_installs_works_until_the_end_and_gives_itself_back(tmp_path):
    arguments = [*ARGUMENTS, f"--config.title={NASTY}"]
    done, home = _boot(tmp_path, [75, 75, 0], arguments=arguments)
    assert done.returncode == 0, done.stderr
    assert len(_calls(tmp_path / "vm")) == 3
    assert (tmp_path / "seen").read_text().splitlines() == ["-m", "cmunet_jax.main", *arguments]
    assert (home / "code" / "data").is_dir() and not list(tmp_path.rglob("pwned"))
    *before, last = _calls(tmp_path / "bin")
    assert any(call.endswith("gs://b/cmunet-jax/logs/my-name.log") for call in before)
    assert last == (
        "gcloud compute tpus queued-resources delete my-name --zone my-zone --force --quiet --async"
    )


def test_a_worker_that_fails_ends_the_bill_too(tmp_path):
    done, home = _boot(tmp_path, [2])
    assert done.returncode == 2 and len(_calls(tmp_path / "vm")) == 1
    assert "ended with status 2" in (home / "worker.log").read_text()
    assert "delete my-name" in _calls(tmp_path / "bin")[-1]


def test_a_vm_can_be_kept_to_look_at_it(tmp_path):
    _boot(tmp_path, [2], delete_when_done=False)
    assert not [call for call in _calls(tmp_path / "bin") if "delete" in call]


def test_an_installation_that_fails_is_not_worked_with(tmp_path):
    _stand_in(tmp_path / "bin", "tar", "exit 3")
    done, _ = _boot(tmp_path, [0])
    assert done.returncode == 3 and not _calls(tmp_path / "vm")


@pytest.mark.parametrize(
    ("key", "value"),
    [("zone", ""), ("name", "A b"), ("type", "v5litepod-16"), ("type", "big"), ("bucket", "b")],
)
def test_what_would_cost_money_to_find_out_is_refused(key, value):
    with pytest.raises(UserError, match=rf"config\.tpu_vm\.{key}"):
        tpu_vm.check(_options(**{key: value}), "gs://b/s")


def test_vms_share_only_a_bucket():
    with pytest.raises(UserError, match="--workdir=gs://"):
        tpu_vm.check(_options(), "/here")
    assert tpu_vm.bucket(_options(), "gs://b/s/t") == "gs://b/cmunet-jax"
    assert tpu_vm.bucket(_options(bucket="gs://c/"), "gs://b/s") == "gs://c"
