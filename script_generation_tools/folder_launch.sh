#!/usr/bin/env bash
# What the scripts and generators of this folder call: mamlkit, by the Python that made the folder; where that has gone,
# the mamlkit on PATH. `mamlkit new` has made this file, and reads it never again.
#
#   launch.sh PROGRAM.py CONFIG [GPU ids, or all] [--option value ... --] [--key value ...]     train
#   launch.sh COMMAND [ARGUMENT...]     any other command of mamlkit, in this folder
# DATASET_DIR and EXPERIMENTS_DIR (default: datasets/ and experiments/ of this folder) are read by the program.
set -euo pipefail
# Until Python is there nothing is under way: SIGINT and SIGTERM end this script by themselves (130 and 143), SIGUSR1
# so:
trap '[[ -z "${RUN_STOPPED_FILE:-}" ]] || echo "SIGUSR1: nothing had begun" >"$RUN_STOPPED_FILE"; exit 0' USR1
unset CDPATH
root="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)"
python=PYTHON
if [[ -x "$python" ]]; then
    mamlkit=("$python" -P -m mamlkit)
elif command -v mamlkit >/dev/null; then
    mamlkit=(mamlkit)
else
    echo "$python, which made $root, is gone, and there is no mamlkit on PATH. Run: python -m pip install mamlkit" >&2
    exit 1
fi
if [[ "$1" == *.py ]]; then
    words=(train "$root/$2" "${@:3}")
    export DATASET_DIR="${DATASET_DIR:-$root/datasets}" EXPERIMENTS_DIR="${EXPERIMENTS_DIR:-$root/experiments}"
else
    words=("$@")
    cd -- "$root"
fi
# While the interpreter starts, signals wait, where `env` can make them (coreutils 8.31); the program lets them in.
waiting=()
if env --block-signal=INT,TERM,USR1 true 2>/dev/null; then waiting=(env "--block-signal=INT,TERM,USR1"); fi
exec ${waiting[@]+"${waiting[@]}"} "${mamlkit[@]}" "${words[@]}"
