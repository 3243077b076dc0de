#!/usr/bin/env bash
# A learner with several ranks, one per GPU, each with a copy of the base: the same adapters for any number of ranks.
#
#   RANKS=4 examples/cluster/ranks.sh                                     two servers sample, four GPUs learn
#   RANKS=4 examples/cluster/ranks.sh --learner.rows.shard_base true           the base is sharded over the four
#   LAUNCH=accelerate RANKS=4 examples/cluster/ranks.sh                   the same with accelerate
#
# The servers must already be running (servers.sh shows how). On the same machine, use CUDA_VISIBLE_DEVICES to give the
# learner other GPUs than theirs. An interrupted run can resume with any other number of ranks: --resume.
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
OUT=${OUT:-runs/ranks}
RANKS=${RANKS:-2}
URLS=${URLS:-http://127.0.0.1:8001,http://127.0.0.1:8002}

if [ "${LAUNCH:-torchrun}" = accelerate ]; then
    launch=(accelerate launch --multi_gpu --num_machines 1 --mixed_precision no --num_processes "$RANKS" -m)
else
    launch=(torchrun --standalone --nproc-per-node "$RANKS" -m)
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

"${launch[@]}" \
    flow_dpo train --model_name_or_path "$MODEL" --preset small --dataset_name openai/gsm8k --dataset_config main \
    --workers servers --base_url "$URLS" --workers.shard 4 --run.problems_per_batch 32 --run.lag 1 \
    --output_dir "$OUT" "$@"
