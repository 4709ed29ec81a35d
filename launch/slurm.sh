#!/usr/bin/env bash
# Trains on the hosts of a SLURM job, one process per host, and goes on after every stop:
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=FILE --workdir=DIR [...]
# from the folder of the repository, its environment active. DIR is on a file system that all hosts
# share. Two minutes before the time limit, and at a preemption, the run saves and exits with 143;
# then the job is queued again, and the same command goes on.
#SBATCH --job-name=diffusion_lm
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
if [[ $# -lt 2 ]]; then
  echo "usage: sbatch [OPTIONS OF SBATCH] launch/slurm.sh --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "launch/slurm.sh: not in a SLURM job; start it by sbatch" >&2
  exit 2
fi
export DIFFUSION_LM_DISTRIBUTED=1
# JAX takes one device per process under SLURM unless told otherwise
if [[ -n ${SLURM_GPUS_ON_NODE:-} && -z ${JAX_LOCAL_DEVICE_IDS:-} ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
trap : TERM # this shell waits for srun all the same, whose processes get the signal too
code=0
srun --kill-on-bad-exit=1 python -m diffusion_lm.main "$@" || code=$?
# A job that was cancelled is no longer RUNNING, and one that is preempted SLURM queues itself.
if [[ $code == 143 && $(squeue --noheader --job="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
