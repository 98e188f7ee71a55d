#!/usr/bin/env bash
# One TPU VM, or a slice of several hosts, through a queued resource: ask for it, wait, install, run,
# fetch, give it back.
#
#   export NAME=cmunet ZONE=us-west4-a          # and optionally TYPE, RUNTIME, PROJECT, SPOT=1
#   launch/tpu_vm/queued_resource.sh create     # queue the request
#   launch/tpu_vm/queued_resource.sh wait       # until it is granted (or has failed)
#   launch/tpu_vm/queued_resource.sh install    # this commit and its packages
#   launch/tpu_vm/queued_resource.sh run --config configs/pretrain.py --workdir runs/pretrain
#   launch/tpu_vm/queued_resource.sh fetch      # runs/ of the VM into runs/ here
#   launch/tpu_vm/queued_resource.sh delete     # stop paying
#
# A slice (TYPE=v5litepod-16 and larger) is one run on all its hosts. They need a folder that all see,
# an NFS export in their network: SHARE=10.0.0.2:/share. `install` mounts it as ~/cmunet-jax/shared, and
# `run` takes a workdir in it: --workdir shared/pretrain
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "launch/tpu_vm/queued_resource.sh" >&2
  exit 2
}

# Types with one host: v5litepod-1, -4, -8; v6e-1, -4, -8. Larger ones have several, of 4 chips each.
readonly TYPE=${TYPE:-v5litepod-4} RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}

tpus() { # tpus GROUP VERB ARGUMENTS...: a gcloud command for this zone and project
  gcloud compute tpus "$@" --zone "${ZONE}" ${PROJECT:+--project "${PROJECT}"}
}

on_vm() { # on_vm COMMAND: runs it on the VM, on each host of a slice
  tpus tpu-vm ssh "${NAME}" --worker all --command "$1"
}

create() {
  tpus queued-resources create "${NAME}" --node-id "${NAME}" --accelerator-type "${TYPE}" \
    --runtime-version "${RUNTIME}" ${SPOT:+--spot}
}

wait_until_active() {
  local state=
  while true; do
    state=$(tpus queued-resources describe "${NAME}" --format 'value(state.state)')
    echo "${NAME}: ${state}"
    case ${state} in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "error: the request is ${state}; look at it with describe, then delete it" >&2
        return 1
        ;;
    esac
    sleep "${POLL_SECONDS:-60}"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix .tar.gz)
  # shellcheck disable=SC2064 # the name is wanted as it is now
  trap "rm -f '${archive}'" EXIT
  git archive --format tar.gz --output "${archive}" HEAD
  tpus tpu-vm scp "${archive}" "${NAME}:cmunet-jax.tar.gz" --worker all
  # The system's Python is older than 3.11, so uv brings one.
  # shellcheck disable=SC2016 # expanded on the VM
  on_vm 'set -e
    mkdir -p cmunet-jax && tar -xzf cmunet-jax.tar.gz -C cmunet-jax && cd cmunet-jax
    python3 -m pip install --user --quiet uv && python3 -m uv python install 3.12
    make install ACCELERATOR=tpu PYTHON="$(python3 -m uv python find 3.12)"'
  if [[ -n ${SHARE:-} ]]; then
    on_vm "set -e; cd cmunet-jax && sudo apt-get install -y -qq nfs-common && mkdir -p shared
      mountpoint -q shared || sudo mount -t nfs $(printf '%q' "${SHARE}") shared
      sudo chown \"\$(id -u)\" shared"
  else # On one host of a slice jax would wait for the others.
    on_vm 'cd cmunet-jax && .venv/bin/python -c "import jax; print(jax.devices())"'
  fi
}

run() {
  (($# > 0)) || usage
  # The hosts of a slice learn from their metadata who they are.
  [[ -z ${SHARE:-} ]] || set -- "$@" --config.distributed=auto
  # A lost connection must not end the run: it goes on in the background and writes train.log.
  # Starting it again resumes.
  on_vm "cd cmunet-jax && nohup .venv/bin/python -m cmunet_jax.main $(printf '%q ' "$@") \
    > train.log 2>&1 < /dev/null & sleep 20; tail -n 20 cmunet-jax/train.log"
  echo "Follow it with: gcloud compute tpus tpu-vm ssh ${NAME} --zone ${ZONE} --command 'tail -f cmunet-jax/train.log'"
}

fetch() {
  mkdir -p runs
  local from=runs
  [[ -z ${SHARE:-} ]] || from=shared
  tpus tpu-vm scp --recurse "${NAME}:cmunet-jax/${from}/*" runs/ --worker 0
}

delete() {
  # --force deletes the VM with the request; without it a granted request cannot be deleted.
  tpus queued-resources delete "${NAME}" --force --quiet
}

command=${1:-}
[[ -n ${command} ]] || usage
shift
if [[ -z ${NAME:-} || -z ${ZONE:-} ]]; then
  echo "error: set NAME (of the request and the VM) and ZONE, for example NAME=cmunet ZONE=us-west4-a" >&2
  exit 2
fi
case ${command} in
  create | install | run | fetch | delete) "${command}" "$@" ;;
  wait) wait_until_active ;;
  *) usage ;;
esac
