#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU.
#
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
#
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), CPU_ONLY=1 (ask for no GPUs), SRUN_ARGS (more srun flags).
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
work_dir=$4
shift 4
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$gpus_per_node" ]; then
    gpus_per_node=$gpus
fi
gres=()
if [ "$gpus_per_node" -gt 0 ] && [ "${CPU_ONLY:-0}" = 0 ]; then
    gres=(--gres="gpu:$gpus_per_node")
fi

# shellcheck disable=SC2086  # SRUN_ARGS holds several words on purpose
PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" \
exec srun -p "$partition" \
    --job-name="$job_name" \
    ${gres[@]+"${gres[@]}"} \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --work-dir="$work_dir" --launcher slurm "$@"
