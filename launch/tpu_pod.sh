#!/usr/bin/env bash
# Trains on a Cloud TPU, one process per host of the slice, and goes on after every preemption.
# Wants gcloud, logged in; start it from anywhere, it copies the code and the configs of this folder.
# The run's folder must be one that all hosts see and that outlives them: --bucket=BUCKET mounts a
# bucket at ~/bucket on each host, so --workdir=../bucket/runs/NAME. Make it with folders that can
# be renamed, as checkpoints are: gcloud storage buckets create gs://BUCKET --location=REGION \
#   --uniform-bucket-level-access --enable-hierarchical-namespace
# All in one, and again after this machine was off (it finds out what there is):
#   launch/tpu_pod.sh keep NAME ZONE --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite \
#     --spot --bucket=BUCKET -- --config=configs/md4_owt.py --workdir=../bucket/runs/md4_owt
set -euo pipefail
usage() {
  cat >&2 <<'TEXT'
usage: launch/tpu_pod.sh COMMAND NAME ZONE [--project=PROJECT] [...]
  create --accelerator-type=TYPE --version=VERSION [--spot]    ask for a TPU (a queued resource)
  setup [--bucket=BUCKET]                                      install this code on all its hosts
  run -- --config=FILE --workdir=DIR [...]                     train, on all hosts, detached
  keep ALL OF THE ABOVE [--interval=SECONDS]                   all three until the run is finished;
                                     anew after each preemption. Exits with the run's own code
  status | logs                                                of the resource; of the run
  delete [--yes]                                               give the TPU back
TEXT
  exit 2
}
[[ $# -ge 3 && $2 != -* && $3 != -* ]] || usage
command=$1 name=$2 zone=$3
shift 3
where=(--zone="$zone" --quiet)
accelerator='' version='' bucket='' yes='' interval=60
kind=(--node-id="$name")
while [[ $# -gt 0 ]]; do
  case $1 in
    --accelerator-type=*) accelerator=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) where+=("$1") ;;
    --bucket=*) bucket=${1#*=} ;;
    --spot) kind+=(--spot) ;;
    --interval=*) interval=${1#*=} ;;
    --yes) yes=1 ;;
    --) break ;;
    *) echo "launch/tpu_pod.sh: unknown argument $1" >&2 && usage ;;
  esac
  shift
done
[[ ${1:-} != -- ]] || shift
train=("$@")
case $command in
  create) [[ -n $accelerator && -n $version ]] || usage ;;
  run) [[ ${#train[@]} -ge 2 ]] || usage ;;
  keep) [[ -n $accelerator && -n $version && ${#train[@]} -ge 2 ]] || usage ;;
  setup | status | logs | delete) ;;
  *) usage ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
queued=(gcloud compute tpus queued-resources)

on() { # HOST COMMAND: in a shell on one host or on all
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  "${queued[@]}" create "$name" "${kind[@]}" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$version"
}

delete() {
  "${queued[@]}" delete "$name" "${where[@]}" --force
}

setup() { # may be repeated
  local archive mount=''
  archive=$(mktemp)
  tar -C "$root" -czf "$archive" --exclude=__pycache__ diffusion_lm configs setup.py README.md || return
  gcloud compute tpus tpu-vm scp "$archive" "$name:diffusion_lm.tgz" "${where[@]}" --worker=all ||
    return
  rm "$archive"
  if [[ -n $bucket ]]; then
    mount="
command -v gcsfuse >/dev/null || {
  apt=https://packages.cloud.google.com/apt keys=/usr/share/keyrings/cloud.google.asc
  curl -fsSL \$apt/doc/apt-key.gpg | sudo tee \$keys >/dev/null
  echo \"deb [signed-by=\$keys] \$apt gcsfuse-\$(lsb_release -cs) main\" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse
}
mkdir -p bucket
mountpoint -q bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 $bucket bucket"
    # no cache, since each host must see at once what another has written
  fi
  # uv, since the Python of the hosts may be older than 3.11
  on all "set -e; cd ~; PATH=\$HOME/.local/bin:\$PATH
mkdir -p diffusion_lm
tar -xzf diffusion_lm.tgz -C diffusion_lm$mount
cd diffusion_lm
command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv
[ -e .venv ] || uv venv -q --python 3.12 .venv
uv pip install -q --python .venv/bin/python -e '.[tpu]'"
}

run() { # in a session of its own, after what is left of a run before has been ended
  # shellcheck disable=SC2016 # is for the hosts to expand
  local inner='.venv/bin/python -m diffusion_lm.main "$@"; echo $? > ../run.exit'
  on all "cd ~/diffusion_lm || exit
if [ -e ../run.pid ]; then kill -KILL -- -\$(cat ../run.pid) 2>/dev/null; fi
rm -f ../run.exit
DIFFUSION_LM_DISTRIBUTED=1 setsid nohup bash -c $(printf %q "$inner") run$(printf ' %q' "${train[@]}") \
>> ../run.log 2>&1 < /dev/null &
echo \$! > ../run.pid"
}

state() { # of the queued resource; ABSENT, or UNKNOWN if gcloud cannot say
  local said
  if said=$("${queued[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2>&1); then
    tail -n 1 <<< "$said" # after warnings
  elif grep -qiE 'not.found' <<< "$said"; then
    echo ABSENT
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}

progress() { # of the run on the first host: none, running or its exit code; "" without an answer
  # shellcheck disable=SC2016
  on 0 'cat run.exit 2>/dev/null ||
if kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null; then echo running; else echo none; fi' | tail -n 1 || true
}

failures=0 last=0
failed() { # WORDS: gives up after five with less than two hours between any two
  if ((SECONDS - last > 7200)); then failures=0; fi
  last=$SECONDS
  failures=$((failures + 1))
  echo "$(date '+%F %T') $1" >&2
  if [[ $failures -ge 5 ]]; then
    echo "given up after $failures failures; $name may still be there and cost money" >&2
    exit 3
  fi
}

keep() {
  local now before='' there='' got
  while true; do
    now=$(state)
    [[ $now == "$before" ]] || echo "$(date '+%F %T') $name is $now"
    before=$now
    case $now in
      ABSENT)
        if [[ -n $there ]]; then
          echo "$name was deleted by someone else; it is not asked for again" >&2
          return 3
        fi
        create || failed "$name could not be asked for"
        ;;
      SUSPENDED | PREEMPTED | FAILED)
        if [[ $now == FAILED ]]; then failed "$name could not be had"; else
          failures=0 # how a run ended that lost its hosts says nothing
        fi
        if ! { delete && there='' && create; }; then failed "$name could not be asked for again"; fi
        ;;
      ACTIVE)
        there=1
        got=$(progress)
        case $got in
          '' | running) ;;
          none) if ! { setup && run; }; then failed "the run could not be started"; fi ;;
          0 | 2 | 3) # finished; bad input; it cannot go on
            on 0 'tail -n 20 run.log' || true
            echo "the run ended with code $got; $name is still there: launch/tpu_pod.sh delete"
            return "$got"
            ;;
          *) # stopped by a signal, its state saved, or cut off with another host
            if [[ $got == 143 ]]; then echo "the run was stopped"; else
              failed "the run ended with code $got"
            fi
            run || failed "the run could not be started"
            ;;
        esac
        ;;
    esac
    sleep "$interval"
  done
}

case $command in
  status)
    now=$(state)
    echo "$now"
    [[ $now != ACTIVE ]] || progress
    ;;
  logs) on 0 'tail -n 1000 -f run.log' ;;
  delete)
    if [[ -z $yes ]]; then
      read -r -p "Delete the TPU $name in $zone and what is on its disks? [y/N] " answer
      [[ $answer == [yY]* ]] || exit 1
    fi
    delete
    ;;
  *) "$command" ;;
esac
