#!/usr/bin/env bash
# One training run on several SLURM nodes. The first node's first GPU learns; all other GPUs sample.
#
#   sbatch --nodes 2 --gpus-per-node 8 examples/cluster/slurm.sh
#
# `ray symmetric-run` starts Ray on every node, runs the command on the first, and at its end stops all of your Ray
# processes on these nodes. So the nodes must not be shared (--exclusive). A job that is ended early loses only the
# batches in flight: submit it again with MORE=--resume.
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
# A different port for each job, so that it does not join the leftovers of an older one.
ADDRESS=$HEAD:$((20000 + SLURM_JOB_ID % 10000))

# Anyone who reaches Ray's ports could run code as you. The secret is in your home, which all nodes see.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ray get-auth-token --generate > /dev/null
# Ray's sockets need a short path on a local disk.
export RAY_TMPDIR=/tmp
export OMP_NUM_THREADS=1

# On the first node GPU 0 belongs to the learner, so Ray sees only the others.
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
