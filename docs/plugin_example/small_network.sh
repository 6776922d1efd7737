#!/usr/bin/env bash
# Trains the network of small_network.py. Usage: bash <this file> [GPU ids, or all] [--key value ...]
here="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)"
exec bash "$here/../../script_generation_tools/launch.sh" train_maml_system.py docs/plugin_example/small_network.json \
    "$@" --plugin "$here/small_network.py"
