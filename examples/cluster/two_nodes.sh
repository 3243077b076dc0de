#!/usr/bin/env bash
# One training run on two machines, with Ray started by hand.
#
#   first machine:   examples/cluster/two_nodes.sh head
#   second machine:  examples/cluster/two_nodes.sh worker 10.0.0.1     (the first machine's address)
#   first machine:   examples/cluster/two_nodes.sh train
#   both, at the end:  ray stop                            (ends all of your Ray there, other runs' too)
#
# Before `worker`, copy ~/.ray/auth_token, which `head` creates, to the second machine.
# Both machines need the same code, versions and model. Only the first one needs the run's folder and the data.
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
OUT=${OUT:-runs/two_nodes}
WORKERS=${WORKERS:-15}
WORKER_GPUS=${WORKER_GPUS:-1}
LEARNER_GPU=${LEARNER_GPU:-0}
RAY_GPUS=${RAY_GPUS:-1,2,3,4,5,6,7}
PORT=${PORT:-6379}
# Open PORT and the ports below between the two machines, and to nobody else.
NODE_PORT=${NODE_PORT:-6380}
OBJECT_PORT=${OBJECT_PORT:-6381}
FIRST_PORT=${FIRST_PORT:-20000}
LAST_PORT=${LAST_PORT:-20999}

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export OMP_NUM_THREADS=1
PORTS=(--node-manager-port "$NODE_PORT" --object-manager-port "$OBJECT_PORT"
    --min-worker-port "$FIRST_PORT" --max-worker-port "$LAST_PORT")

case "${1:-}" in
head)
    ray get-auth-token --generate > /dev/null
    # The learner's GPU is hidden from Ray.
    CUDA_VISIBLE_DEVICES=$RAY_GPUS ray start --head --port "$PORT" --include-dashboard false \
        "${PORTS[@]}" "${@:2}"
    ;;
worker)
    ray start --address "${2:?the address of the first machine}:$PORT" "${PORTS[@]}" "${@:3}"
    ;;
train)
    CUDA_VISIBLE_DEVICES=$LEARNER_GPU \
        flow-dpo train --model_name_or_path "$MODEL" --preset small --dataset_name openai/gsm8k --dataset_config main \
        --engine vllm --workers ray --workers.address auto --workers.num "$WORKERS" \
        --workers.num_gpus "$WORKER_GPUS" --workers.shard 4 --run.problems_per_batch 32 --run.lag 1 \
        --output_dir "$OUT" "${@:2}"
    ;;
*)
    sed -n 2,10p "$0"
    exit 2
    ;;
esac
