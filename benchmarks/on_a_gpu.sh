#!/usr/bin/env bash
# What only a GPU can show, one part after the other; each part can be asked for alone.
#
#     bash benchmarks/on_a_gpu.sh PARTS ... [-- PATH_OF_A_CHECKOUT_OF_THE_ORIGINAL]
#
# PARTS
#   table      all standard settings (ms per iteration, against the device's ceilings)
#   graphs     the same without CUDA graphs, and in bfloat16, for Omniglot
#   original   our iteration and the original's in turns; needs the path
#   resume     real scripts killed and rerun in deterministic mode: equal to the bit? (report in resume_on_gpu.md)
#   cost       a deterministic iteration against an ordinary one
#   train      Omniglot 20-way 1-shot, the released schedule (50,000 iterations of 8 tasks), trained and tested; run it
#              again to go on; needs omniglot_dataset, or its archive, in $DATASET_DIR (default: datasets)
#
# Results go to the terminal and to the folder $OUT (default: benchmark_results). All parts run with $PYTHON (default:
# python), which has to have what requirements.txt names: nothing is installed, and no network is used.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "$0")")/.."
OUT="${OUT:-benchmark_results}"
PYTHON="${PYTHON:-$(command -v python || echo python3)}"
mkdir -p "$OUT"

parts=() original=""
while (($#)); do
  if [[ $1 == -- ]]; then
    original="${2:?the path of a checkout of the original belongs after --}"
    shift 2
  else
    parts+=("$1")
    shift
  fi
done
((${#parts[@]})) || parts=(table graphs resume cost)

omniglot=("Omniglot 5-way 1-shot" "Omniglot 20-way 1-shot")
for part in "${parts[@]}"; do
  echo "== $part"
  case "$part" in
    table) "$PYTHON" benchmarks/meta_iteration.py | tee "$OUT/table.txt" ;;
    graphs)
      "$PYTHON" benchmarks/meta_iteration.py --settings "${omniglot[@]}" --use_cuda_graphs false |
        tee "$OUT/without_graphs.txt"
      "$PYTHON" benchmarks/meta_iteration.py --settings "${omniglot[@]}" --precision bfloat16 \
        --precision_error_limit 100 | tee "$OUT/bfloat16.txt"
      ;;
    original)
      "$PYTHON" benchmarks/compare_with_original.py --original "${original:?give its path after --}" --iterations 20 |
        tee "$OUT/original.txt"
      ;;
    resume)
      "$PYTHON" benchmarks/reliability.py --gpu 0 --kills 8 --signals 2 --output "$OUT/resume_on_gpu.md" |
        tee "$OUT/resume.txt"
      ;;
    cost)
      "$PYTHON" benchmarks/meta_iteration.py --settings "${omniglot[@]}" --deterministic true |
        tee "$OUT/deterministic.txt"
      ;;
    train)
      # What experiment_scripts/omniglot_maml++_20way_1shot_seed0.sh starts, without a look for another environment.
      "$PYTHON" train_maml_system.py \
        --name_of_args_json_file experiment_config/omniglot_maml++_20way_1shot_seed0.json --gpu_to_use 0 \
        --experiment_name released_schedule --batch_size 8 --total_epochs 100 --total_iter_per_epoch 500 2>&1 |
        tee -a "$OUT/train.txt"
      ;;
    *) echo "on_a_gpu.sh: no part \"$part\"; there are: table graphs original resume cost train" >&2; exit 1 ;;
  esac
done
