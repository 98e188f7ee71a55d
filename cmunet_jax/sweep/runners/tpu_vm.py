"""Plain TPU VMs through queued resources: each VM is one worker of the sweep.

`config.runner=tpu_vm` writes two shell scripts and prints the commands; nothing is sent to Google
Cloud. startup.sh runs on a VM whenever it boots: it installs the code, works until no trial is
left, and gives the VM back. queued_resources.sh runs here and asks for the VMs. They share nothing
but a bucket.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.runners import command
from cmunet_jax.sweep.store import open_store
from tfds_angio.errors import UserError

FOLDER = "tpu_vm"
STARTUP, CONTROL = "startup.sh", "queued_resources.sh"
DATA_DIR = "data"  # config.data.dir of a worker, in the folder in which it is started
_NAME = r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?"

_STARTUP = """\
#!/usr/bin/env bash
# Written by config.runner=tpu_vm. Runs as root whenever the VM boots; doing it again does no harm.
set -euo pipefail
readonly BUCKET={bucket} PREEMPTED=75
readonly HERE="${{CMUNET_HOME:-/opt/cmunet-jax}}"
readonly LOG="${{HERE}}/worker.log"
export HOME="${{HOME:-/root}}" PYTHONUNBUFFERED=1

attribute() {{
  curl --silent --fail --header 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}

retry() {{ # the network and the package index may need a moment after a boot
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return 0
    echo "attempt ${{attempt}} failed: $*"
    sleep "$((attempt * ${{RETRY_SECONDS:-20}}))"
  done
  return 1
}}

install() {{
  retry gcloud storage cp "${{BUCKET}}/code.tar.gz" code.tar.gz
  mkdir -p code && cd code
  tar -xzf ../code.tar.gz
  mkdir -p {data_dir}
  retry gcloud storage rsync --recursive "${{BUCKET}}/data" {data_dir}
  # The system's Python is older than 3.11, so uv brings one.
  retry python3 -m pip install --quiet uv
  retry python3 -m uv python install 3.12
  retry make install ACCELERATOR=tpu,gcs PYTHON="$(python3 -m uv python find 3.12)"
}}

work() {{
  local status
  while true; do
    status=0
    # shellcheck disable=SC2016 # quoted so that nothing in it is expanded
    {worker} || status=$?
    [[ ${{status}} == "${{PREEMPTED}}" ]] || return "${{status}}"
  done
}}

name=$(attribute cmunet-name)
mkdir -p "${{HERE}}" && cd "${{HERE}}"
status=0
# A shell of its own: -e would be ignored in a function that is a condition.
(
  trap 'exit 143' TERM
  install
  work
) >> "${{LOG}}" 2>&1 &
wait "$!" || status=$?
echo "the worker ended with status ${{status}}" >> "${{LOG}}"
gcloud storage cp "${{LOG}}" "${{BUCKET}}/logs/${{name}}.log" || true
{end}
exit "${{status}}"
"""
_GIVE_BACK = """\
# A VM costs money until it is deleted, whether it works or not.
zone=$(attribute cmunet-zone)
gcloud compute tpus queued-resources delete "${name}" --zone "${zone}" --force --quiet --async"""

_CONTROL = """\
#!/usr/bin/env bash
# Written by config.runner=tpu_vm: {count} TPU VMs, each a worker of the sweep.
#
#   {path} upload   # this commit and the data sets into the bucket; once
#   {path} create   # queue a request for each VM
#   {path} status   # of the requests
#   {path} renew    # ask again for those that were taken away or have failed
#   {path} log N    # the end of the log of VM number N, from 0
#   {path} delete   # give all of them back: this is what stops the bill
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
readonly BUCKET={bucket} CHECKOUT={checkout} DATA={data}
readonly ZONE={zone} PROJECT={project}
readonly NAMES=({names})

tpus() {{ # tpus GROUP VERB ARGUMENTS...
  gcloud compute tpus "$@" --zone "${{ZONE}}" ${{PROJECT:+--project "${{PROJECT}}"}}
}}

upload() {{
  local archive
  archive=$(mktemp)
  git -C "${{CHECKOUT}}" archive --format tar.gz --output "${{archive}}" HEAD
  gcloud storage cp "${{archive}}" "${{BUCKET}}/code.tar.gz"
  rm -f "${{archive}}"
  gcloud storage rsync --recursive "${{DATA}}" "${{BUCKET}}/data"
}}

request() {{ # request NAME
  tpus queued-resources create "$1" --node-id "$1" {request} \\
    --metadata "cmunet-name=$1,cmunet-zone=${{ZONE}}" \\
    --metadata-from-file startup-script={startup}
}}

state_of() {{ # state_of NAME; nothing where there is no such request
  tpus queued-resources describe "$1" --format 'value(state.state)' 2> /dev/null || true
}}

delete_one() {{ # delete_one NAME; --force deletes the VM with the request
  tpus queued-resources delete "$1" --force --quiet
}}

create() {{
  local name
  for name in "${{NAMES[@]}}"; do request "${{name}}"; done
}}

status() {{
  local name state
  for name in "${{NAMES[@]}}"; do
    state=$(state_of "${{name}}")
    echo "${{name}}: ${{state:-given back, or never asked for}}"
  done
}}

renew() {{
  local name
  for name in "${{NAMES[@]}}"; do
    case $(state_of "${{name}}") in
      FAILED | SUSPENDED)
        delete_one "${{name}}"
        request "${{name}}"
        ;;
    esac
  done
}}

log() {{
  tpus tpu-vm ssh "${{NAMES[${{1:-0}}]}}" --command 'sudo tail -n 50 /opt/cmunet-jax/worker.log'
}}

delete() {{
  local name
  for name in "${{NAMES[@]}}"; do
    if [[ -n $(state_of "${{name}}") ]]; then delete_one "${{name}}"; fi
  done
}}

case ${{1:-}} in
  upload | create | status | renew | log | delete) "$@" ;;
  *)
    sed -n '2,/^set /{{/^#/s/^# \\{{0,1\\}}//p}}' {control} >&2
    exit 2
    ;;
esac
"""


def default_options() -> dict[str, Any]:
    """Returns the default of `config.tpu_vm`."""
    return {
        "max_workers": 4,  # VMs
        "name": "cmunet-sweep",  # of the VMs, with a number behind it
        "project": "",  # empty: that of gcloud
        "zone": "",  # for example us-west4-a
        "type": "v5litepod-4",  # one host: v5litepod-1, -4, -8, v6e-1, -4, -8
        "runtime": "v2-alpha-tpuv5-lite",  # the image that belongs to the type
        "spot": False,  # cheaper VMs that can be taken away
        "service_account": "",  # of the VMs; empty: the project's default
        "valid_for": "",  # how long a request may wait: '12h'; empty: for ever
        "bucket": "",  # for code, data and logs; empty: cmunet-jax/ in the bucket of --workdir
        "delete_when_done": True,  # a VM deletes itself when no trial is left
    }


def run(plan: Sequence[Trial], config: ml_collections.ConfigDict, workdir: Path | str) -> int:
    """Writes the two scripts and prints the commands; see the module."""
    options, place = config.tpu_vm.to_dict(), str(workdir)
    check(options, place)
    left = command.trials_left(plan, config, open_store(workdir))
    if not left:
        return 0
    values = {"data.dir": DATA_DIR}
    arguments = command.worker_arguments(sys.argv[1:], workdir=place, values=values)
    workers = command.count_workers("tpu_vm.max_workers", left, options["max_workers"])
    startup = startup_script(
        options, workdir=place, arguments=command.of_checkout(arguments, Path.cwd())
    )
    control = control_script(
        options,
        workdir=place,
        workers=workers,
        checkout=Path.cwd(),
        data_dir=Path(config.data.dir).absolute(),
    )
    folder = command.launch_folder(workdir, FOLDER)
    command.write_text(folder / STARTUP, startup, executable=True)
    command.write_text(folder / CONTROL, control, executable=True)
    print(f"{left} trials are left for {workers} workers. The commands, in this order:")
    for word in ("upload", "create", "status", "delete"):
        print(f"  {shlex.quote(str(folder / CONTROL))} {word}")
    return 0


def check(options: Mapping[str, Any], workdir: str) -> None:
    """Checks what would only be noticed on a VM that costs money.

    Raises:
      UserError: naming the key and the remedy.
    """
    if not workdir.startswith("gs://"):
        raise UserError(
            f"TPU VMs do not share {workdir}: they share only a bucket. "
            "Set --workdir=gs://BUCKET/sweep"
        )
    if not options["zone"]:
        raise UserError("config.tpu_vm.zone is empty. Set it, for example to us-west4-a")
    command.check_name("tpu_vm.name", options["name"], _NAME, "cmunet-sweep")
    number = command.check_name(
        "tpu_vm.type", options["type"], r"[a-z0-9]+-\d+", "v5litepod-4"
    ).rpartition("-")[2]
    if int(number) > 8:
        raise UserError(
            f"config.tpu_vm.type={options['type']} has several hosts, and a worker is one process "
            "on one host. Use a type that ends in -8 or less, and more workers."
        )
    if options["bucket"] and not options["bucket"].startswith("gs://"):
        raise UserError(f"config.tpu_vm.bucket='{options['bucket']}' must begin with gs://")


def bucket(options: Mapping[str, Any], workdir: str) -> str:
    """Returns where code, data and logs are kept, without a slash at the end."""
    name = workdir.removeprefix("gs://").partition("/")[0]
    return (options["bucket"] or f"gs://{name}/cmunet-jax").rstrip("/")


def startup_script(options: Mapping[str, Any], *, workdir: str, arguments: Sequence[str]) -> str:
    """Returns what a VM runs when it boots.

    Args:
      options: as in `default_options`.
      workdir: of the sweep, a gs:// URL.
      arguments: of `python -m cmunet_jax.main` for a worker.
    """
    worker = [".venv/bin/python", "-m", "cmunet_jax.main", *arguments]
    return _STARTUP.format(
        bucket=shlex.quote(bucket(options, workdir)),
        data_dir=DATA_DIR,
        worker=shlex.join(worker),
        end=_GIVE_BACK if options["delete_when_done"] else "",
    )


def control_script(
    options: Mapping[str, Any],
    *,
    workdir: str,
    workers: int,
    checkout: Path,
    data_dir: Path,
) -> str:
    """Returns what asks for the VMs, watches them and gives them back.

    Args:
      options: as in `default_options`.
      workdir: of the sweep, a gs:// URL.
      workers: VMs.
      checkout: a git work tree; its last commit is what runs.
      data_dir: the built data sets on this machine.
    """
    request = [f"--accelerator-type={options['type']}", f"--runtime-version={options['runtime']}"]
    if options["spot"]:
        request.append("--spot")
    if options["service_account"]:
        request.append(f"--service-account={options['service_account']}")
    if options["valid_for"]:
        request.append(f"--valid-until-duration={options['valid_for']}")
    return _CONTROL.format(
        count=workers,
        path=CONTROL,
        control=CONTROL,
        startup=STARTUP,
        bucket=shlex.quote(bucket(options, workdir)),
        checkout=shlex.quote(str(checkout)),
        data=shlex.quote(str(data_dir)),
        zone=shlex.quote(options["zone"]),
        project=shlex.quote(options["project"]),
        names=" ".join(f"{options['name']}-{i}" for i in range(workers)),
        request=shlex.join(request),
    )
