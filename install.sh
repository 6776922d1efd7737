#!/usr/bin/env bash
# Set up what the project needs. Rerunning it is quick and harmless; one that was killed is mended by the next.
#
#   bash install.sh                 what running needs (requirements.txt)
#   bash install.sh --dev           also what the tests need (requirements-dev.txt)
#   bash install.sh --print-python  set up if needed, then print the path of the Python to use (for other scripts)
#   TORCH_VARIANT=cpu bash install.sh    take torch from PyTorch's own wheel index (cpu, cu130, ...)
#
# An activated venv or conda environment with torch >= 2.11 is used, and gets only what it lacks; its torch stays.
# Else `.venv` is made in this folder, with uv where it can be had (much faster), otherwise with pip.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
root="$PWD"
own_environment="$root/.venv"
made_here="$own_environment/.made_by_install"
unfinished="$own_environment/.set_up_unfinished"

say() { printf 'install.sh: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
is_there() { command -v "$1" >/dev/null 2>&1; }

requirements=(requirements.txt)
print_python=false
for argument in "$@"; do
    case "$argument" in
        --dev) requirements+=(requirements-dev.txt) ;;
        --print-python) print_python=true ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$root/install.sh"; exit 0 ;;
        *) fail "unknown argument \"$argument\"; known are --dev and --print-python" ;;
    esac
done

[[ "${TORCH_VARIANT:-cpu}" =~ ^[a-z0-9._]+$ ]] ||
    fail "TORCH_VARIANT is \"$TORCH_VARIANT\"; it must be like cpu or cu130"

is_recent() { # is this command a Python >= 3.11?
    "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null
}

missing() { # missing PYTHON FILE...: print the requirements of these files that are absent or too old
    local python="$1"
    shift
    "$python" - "$@" <<'PYTHON'
import importlib.metadata, re, sys

def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]

for path in sys.argv[1:]:
    for line in open(path, encoding="utf-8"):
        requirement = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:>=\s*([0-9.]+))?\s*(?:#.*)?$", line.strip())
        if requirement:
            name, least = requirement.groups()
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                version = None
            if not version or (least and numbers(version) < numbers(least)):
                print(f"{name}>={least}" if least else name)
PYTHON
}

version_of() { # version_of PYTHON DISTRIBUTION: print its version, or nothing
    "$1" -c 'import sys, importlib.metadata as m
print(next((d.version for d in m.distributions(name=sys.argv[1])), ""))' "$2"
}

has_torch() { # does this Python have torch >= 2.11? (read from the files: importing it takes seconds)
    ! missing "$1" <(grep -E '^torch>=' requirements.txt) | grep -q .
}

find_uv() { # print the uv to use for this Python, or nothing
    local beside
    beside="$(dirname -- "$1")/uv"
    if is_there uv; then command -v uv; elif [[ -x "$beside" ]]; then printf '%s\n' "$beside"; fi
}

add_packages() { # add_packages PYTHON ARGUMENT...: `pip install`, by uv where it is there and able, else by pip
    local python="$1" uv
    shift
    uv="$(find_uv "$python")"
    if [[ -n "$uv" ]]; then
        "$uv" pip install --python "$python" "$@" >&2 && return
        say "uv could not do it; trying pip"
    fi
    "$python" -m pip install "$@" >&2
}

complete() { # add what this Python lacks, never touching the torch that is there
    local python="$1" torch_version wanted name constraint=() packages=()
    torch_version="$(version_of "$python" torch)"
    wanted="$(missing "$python" "${requirements[@]}")"
    if [[ -n "${TORCH_VARIANT:-}" ]] && grep -q '^torch>=' <<<"$wanted"; then
        add_from_index "$python" "$TORCH_VARIANT" "$(grep '^torch>=' requirements.txt)" torchvision
        torch_version="$(version_of "$python" torch)"
    fi
    if has_torch "$python"; then
        constraint_file="$(mktemp)"
        trap 'rm -f -- "$constraint_file"' EXIT
        printf 'torch==%s\n' "$torch_version" >"$constraint_file"
        constraint=(--constraint "$constraint_file")
        # A torchvision built for another variant of torch cannot be imported, though its version fits.
        if [[ "$torch_version" == *+* && -z "$(version_of "$python" torchvision)" ]]; then
            add_from_index "$python" "${torch_version#*+}" "${constraint[@]}" torchvision
        fi
    fi
    wanted="$(missing "$python" "${requirements[@]}")"
    [[ -n "$wanted" ]] || return 0
    while IFS= read -r name; do packages+=("$name"); done <<<"$wanted"
    say "adding ${packages[*]}"
    add_packages "$python" ${constraint[@]+"${constraint[@]}"} "${packages[@]}" ||
        fail "the packages above could not be added to $python (a torch that was there was not touched). The lines" \
            "above say why; without a network, activate an environment that has them. Then run it again."
    wanted="$(missing "$python" "${requirements[@]}")"
    [[ -z "$wanted" ]] || fail "still missing in $python: ${wanted//$'\n'/ }"
    "$python" -c 'import torch' >&2 ||
        fail "torch is installed in $python but cannot be imported; the lines above say why"
    "$python" -c 'import torchvision' >/dev/null 2>&1 ||
        say "the torchvision in $python does not fit its torch $(version_of "$python" torch);" \
            "it is needed only to download Omniglot, all else works without it"
}

add_from_index() { # add_from_index PYTHON VARIANT ARGUMENT...: from PyTorch's own wheel index; says so where that fails
    local python="$1" index="https://download.pytorch.org/whl/$2" uv command
    shift 2
    uv="$(find_uv "$python")"
    command=("$python" -m pip install --retries 1)
    [[ -z "$uv" ]] || command=("$uv" pip install --python "$python")
    say "looking at $index"
    "${command[@]}" --index-url "$index" "$@" >&2 ||
        say "nothing fitting from $index (not reachable, or no such variant): taking the default wheel instead"
}

activated_python() { # print the Python of an activated environment that has torch >= 2.11, or nothing
    local prefix
    for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        [[ -n "$prefix" && "$prefix" != "$own_environment" && -x "$prefix/bin/python" ]] || continue
        if is_recent "$prefix/bin/python" && has_torch "$prefix/bin/python"; then
            printf '%s\n' "$prefix/bin/python"
            return
        fi
    done
}

base_python() { # print a Python >= 3.11 of this machine
    local candidate
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11; do
        if is_there "$candidate" && is_recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, but $(python3 --version 2>/dev/null || echo 'no python3') is what there is." \
        "Install one (for example python3.12 and python3.12-venv), or activate an environment that has it."
}

make_environment() { # make .venv if it is not there or an earlier set-up of ours was interrupted
    local base
    if [[ -e "$unfinished" && -e "$made_here" ]]; then
        say "an earlier set-up was interrupted: starting .venv again"
        rm -rf -- "$own_environment"
    fi
    if [[ -e "$own_environment" ]]; then
        is_recent "$own_environment/bin/python" && return
        [[ -e "$made_here" ]] ||
            fail "$own_environment is no working environment with Python >= 3.11, and this script did not make it:" \
                "move it away and run again"
        say ".venv does not work any more (was its Python removed?): making it again"
        rm -rf -- "$own_environment"
    fi
    base="$(base_python)"
    say "making .venv with $("$base" --version)"
    mkdir -- "$own_environment"
    touch -- "$made_here" "$unfinished"
    if is_there uv && uv venv --quiet --allow-existing --seed --python "$base" "$own_environment" >&2; then
        return
    fi
    "$base" -m venv "$own_environment" >&2 ||
        fail "$base could not make a virtual environment. On Debian and Ubuntu the package python3-venv is missing:" \
            "apt install python3-venv. Then run it again."
    "$own_environment/bin/python" -m pip install --quiet uv >&2 ||
        say "uv cannot be had: going on with pip, which is slower"
}

finish() { # say what TORCH_VARIANT did not do, print the Python if asked, and end
    local torch_version
    if [[ -n "${TORCH_VARIANT:-}" ]]; then
        torch_version="$(version_of "$1" torch)"
        [[ "$torch_version" == *"+$TORCH_VARIANT" ]] ||
            say "torch $torch_version is there and stays; TORCH_VARIANT=$TORCH_VARIANT has no effect"
    fi
    if $print_python; then printf '%s\n' "$1"; fi
    exit 0
}

python="$(activated_python)"
if [[ -n "$python" ]]; then
    [[ -n "$(missing "$python" "${requirements[@]}")" ]] || finish "$python"
elif [[ ! -e "$unfinished" ]] && is_recent "$own_environment/bin/python"; then
    [[ -n "$(missing "$own_environment/bin/python" "${requirements[@]}")" ]] || finish "$own_environment/bin/python"
fi

# One set-up at a time: the lock goes with the process, however that ends.
[[ -w "$root" ]] ||
    fail "cannot write to $root; to use it as it is, activate an environment with all of ${requirements[*]}"
exec 9>"$root/.install.lock"
if is_there flock && ! flock --nonblock 9; then
    say "another set-up is under way: waiting for it"
    flock 9
fi
if [[ -n "$python" ]]; then
    complete "$python"
else
    [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" || "${VIRTUAL_ENV:-}" == "$own_environment" ]] ||
        say "the activated environment ${VIRTUAL_ENV:-$CONDA_PREFIX} has no Python >= 3.11 with torch >= 2.11:" \
            "using .venv"
    make_environment
    python="$own_environment/bin/python"
    if [[ -n "$(missing "$python" "${requirements[@]}")" ]]; then
        touch -- "$unfinished"
        complete "$python"
    fi
    rm -f -- "$unfinished"
    say "ready: $python"
fi
finish "$python"
