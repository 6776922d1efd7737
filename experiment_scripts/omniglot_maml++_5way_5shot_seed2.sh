#!/usr/bin/env bash
# Generated from script_generation_tools/local_run_template_script.sh. Usage: bash FILE [GPU ids, or all] [--key value ...]
exec bash "$(dirname -- "$0")/../script_generation_tools/launch.sh" train_maml_system.py experiment_config/omniglot_maml++_5way_5shot_seed2.json "$@"
