#!/usr/bin/env bash
# What every .sbatch file of experiment_scripts/ becomes: run a script, and put the job back into the queue before its
# time is up.
#
#   slurm_job.sh SCRIPT_WITHOUT_SEED [--option value ... --] [--key value ...]
#
# In a job array the script is that of the seed SLURM_ARRAY_TASK_ID. All GPUs of the job are used, on several machines
# too. Some time before the limit SLURM sends SIGUSR1 (`#SBATCH --signal`): the run saves and stops, and says so in the
# file that RUN_STOPPED_FILE names; only then the job is requeued. MAX_REQUEUES (100) ends a job that never gets
# anywhere.
set -euo pipefail
unset CDPATH
root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
script="$root/$1"
shift
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then script="${script}_seed$SLURM_ARRAY_TASK_ID"; fi
script="$script.sh"
if [[ ! -f "$script" ]]; then
    echo "$script does not exist. The seeds that there are: the --array of the .sbatch file;" \
        "or generate the scripts anew." >&2
    exit 1
fi

machines="${SLURM_JOB_NUM_NODES:-1}"
if ((machines > 1)); then
    first="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
    first="${first%%$'\n'*}"
    meet=(--nnodes "$machines" --rdzv_endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))")
    has_options=false
    for argument in "$@"; do
        if [[ "$argument" == -- ]]; then has_options=true; fi
    done
    if ! $has_options; then meet+=(--); fi
    # srun does not take the job's number of CPUs over by itself (since SLURM 22.05).
    command=(
        srun "--ntasks=$machines" --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
        bash "$script" all "${meet[@]}" "$@"
    )
else
    command=(bash "$script" all "$@")
fi

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
export RUN_STOPPED_FILE="$folder/stopped"

run=""
# shellcheck disable=SC2329 # the traps call it
pass_on() { if [[ -n "$run" ]]; then kill -s "$1" "$run" 2>/dev/null || true; fi; }
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
"${command[@]}" &
run=$!
code=0
while :; do # a signal ends `wait`, not the run
    code=0
    wait "$run" || code=$?
    kill -0 "$run" 2>/dev/null || break
done

if [[ -f "$RUN_STOPPED_FILE" && "$(<"$RUN_STOPPED_FILE")" == SIGUSR1* ]]; then
    job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
    job="${job:-${SLURM_JOB_ID:-}}"
    if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_REQUEUES:-100})); then
        echo "Not finished after ${SLURM_RESTART_COUNT} requeues; MAX_REQUEUES allows no more." \
            "Submit it again to go on." >&2
        exit 1
    fi
    echo "Not finished: requeueing job $job"
    scontrol requeue "$job"
fi
exit "$code"
