#!/usr/bin/env bash
# The whole gate: ruff, shellcheck (generated scripts too) and the tests. Sets up on its first run.
#
#   bash run_tests.sh           what runs at every change
#   bash run_tests.sh --full    also what is too slow for that
#   bash run_tests.sh [--full] ARGUMENT...    the arguments go to pytest: a test, -x, -n 8 (processes), -n 0 (this one)
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' run_tests.sh
    exit
fi
selection=()
if [[ "${1:-}" == --full ]]; then
    selection=(-m "full or not full")
    shift
fi
python="$(bash install.sh --dev --print-python)"

echo "ruff"
"$python" -m ruff check .
"$python" -m ruff format --check --quiet .
echo "shellcheck"
shellcheck="$(dirname -- "$python")/shellcheck"
[[ -x "$shellcheck" ]] || shellcheck=shellcheck
# The templates of the scripts hold $placeholders$, so what is made from them is checked instead.
find . -path ./.venv -prune -o -path ./experiments -prune -o -path ./datasets -prune -o -type f \
    \( -name '*.sh' -o -name '*.sbatch' -o -path ./.ci/run \) \
    ! -name local_run_template_script.sh ! -name slurm_template_script.sbatch -print0 |
    xargs -0 -n 80 -P 2 "$shellcheck"
echo "pytest"
# The tests' tensors are tiny: a second thread only waits, and on a busy machine it waits for long.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests start some hundred processes. Where byte code is not kept, each of them compiles torch anew: 5 s instead of 2.
unset PYTHONDONTWRITEBYTECODE
# Two processes, whatever the machine: a container often shows more cores than it may use, and a process takes 1 GB.
"$python" -m pytest -q -n 2 --dist worksteal ${selection[@]+"${selection[@]}"} "$@"
