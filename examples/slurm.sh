#!/bin/bash
# A study by an array of independent processes that share one results folder through its locks:
#
#     sbatch --array=0-7 examples/slurm.sh quick --num-seeds 8
#     RESULTS=/shared/mine sbatch --array=0-3 --gres=gpu:1 examples/slurm.sh -o adam -o lion -e breakout
#
# All arguments go to `openbench compare`. Processes may come, die and be requeued at any time: each takes experiments
# that nobody holds, and what is finished stays. Take at most as many as there are experiments.
#SBATCH --job-name=open-bench
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=open-bench-%A_%a.log
set -euo pipefail

where=(--results "${RESULTS:-results/slurm}")
if [[ -z "${SLURM_GPUS_ON_NODE:-}" ]]; then # with GPUs all that the job was given are used
  where+=(--devices "${SLURM_CPUS_PER_TASK:-1}")
fi
exec openbench compare "$@" "${where[@]}" --plain
