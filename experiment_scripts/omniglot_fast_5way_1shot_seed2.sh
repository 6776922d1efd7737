#!/usr/bin/env bash
# Made by script_generation_tools/generate_scripts.py. Usage: bash <this file> [GPU ids, or all] [--key value ...]
exec bash "$(dirname -- "$(readlink -f -- "$0")")/../script_generation_tools/launch.sh" train_maml_system.py experiment_config/omniglot_fast_5way_1shot_seed2.json "$@"
