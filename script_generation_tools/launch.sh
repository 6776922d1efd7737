#!/usr/bin/env bash
# What every script of experiment_scripts/ calls: find or set up the environment, then become the Python program.
#
#   launch.sh PROGRAM CONFIG [GPU ids, or all] [--option value ... --] [--key value ...]
#
# GPU ids are separated by spaces or commas; without them the program takes the first GPU there is, else the CPU.
# Everything from the first argument that begins with "-" on overrides keys of the config; what stands before a "--" is
# for torchrun, by which the program starts a process per GPU (docs/many_gpus.md).
# DATASET_DIR and EXPERIMENTS_DIR (default: datasets/ and experiments/ of this checkout) are read by the program.
set -euo pipefail
# Until Python is there nothing is under way: SIGINT and SIGTERM end this script by themselves (130 and 143), SIGUSR1
# so:
trap '[[ -z "${RUN_STOPPED_FILE:-}" ]] || echo "SIGUSR1: nothing had begun" >"$RUN_STOPPED_FILE"; exit 0' USR1
unset CDPATH
root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
program="$1"
config="$2"
shift 2

name="${config##*/}"
ids=""
while [[ $# -gt 0 && ("$1" != -* || "$1" =~ ^-[0-9]) ]]; do
    if ! [[ "$1" =~ ^(all|[0-9,]+)$ ]]; then
        echo "\"$1\" is neither a GPU id nor an override. Usage: bash experiment_scripts/${name%.json}.sh" \
            '[GPU ids, or all] [--key value ...], for example: 0 --total_epochs 10. For the CPU: --gpu_to_use cpu.' \
            'All keys: --help' >&2
        exit 1
    fi
    ids="$ids,$1"
    shift
done
ids="$(tr -s , <<<"$ids")" # "0", "0 1", "0,1" and "0, 1" alike
ids="${ids#,}"
ids="${ids%,}"

launch=() # what stands before a "--", with it
before=()
for argument in "$@"; do
    before+=("$argument")
    if [[ "$argument" == -- ]]; then
        launch=("${before[@]}")
        shift "${#before[@]}"
        break
    fi
done

python="$(bash "$root/install.sh" --print-python)"
# While the interpreter starts, signals wait, where `env` can make them (coreutils 8.31); PROGRAM has to let them in.
waiting=()
if env --block-signal=INT,TERM,USR1 true 2>/dev/null; then waiting=(env "--block-signal=INT,TERM,USR1"); fi
exec ${waiting[@]+"${waiting[@]}"} "$python" "$root/$program" ${launch[@]+"${launch[@]}"} \
    --name_of_args_json_file "$root/$config" ${ids:+--gpu_to_use "$ids"} "$@"
