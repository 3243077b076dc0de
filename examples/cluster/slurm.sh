#!/usr/bin/env bash
# One training run on several SLURM nodes: the first node learns, all GPUs but one of it sample.
#
#   sbatch --nodes 2 --gpus-per-node 8 examples/cluster/slurm.sh
#
# `ray symmetric-run` starts Ray on every node, runs the command on the first and stops Ray at its end: all of your Ray
# on these nodes, so that they must not be shared (--exclusive). A job that is ended early loses the batches under way
# and nothing else: submit it again with MORE=--resume.
#SBATCH --job-name=flow-dpo
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=08:00:00
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
OUT=${OUT:-runs/cluster}
MORE=${MORE:-}
GPUS=${SLURM_GPUS_ON_NODE:-8}
WORKERS=${WORKERS:-$((SLURM_JOB_NUM_NODES * GPUS - 1))}

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${NODES[0]}
# Another port for each job: what an older one left behind is not joined.
ADDRESS=$HEAD:$((20000 + SLURM_JOB_ID % 10000))

# Whoever reaches Ray's ports could run code as you. The secret lies in your home, which all nodes see.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ray get-auth-token --generate > /dev/null
# Ray's sockets need a short path on a local disk.
export RAY_TMPDIR=/tmp
export OMP_NUM_THREADS=1

# On the first node GPU 0 is the learner's: Ray there is shown the others.
srun --kill-on-bad-exit=1 bash -c '
    if [ "$SLURM_NODEID" = 0 ]; then
        export CUDA_VISIBLE_DEVICES=$(seq -s , 1 $(('"$GPUS"' - 1)))
    fi
    exec ray symmetric-run --address "$1" --min-nodes "$SLURM_JOB_NUM_NODES" --include-dashboard false -- "${@:2}"
' bash "$ADDRESS" \
    env CUDA_VISIBLE_DEVICES=0 \
    flow-dpo train --model_name_or_path "$MODEL" --preset small --dataset_name openai/gsm8k --dataset_config main \
        --engine vllm --workers ray --workers.address auto --workers.num "$WORKERS" --workers.num_gpus 1 \
        --workers.shard 4 --run.problems_per_batch 32 --run.lag 1 --output_dir "$OUT" $MORE
