#!/usr/bin/env bash
# Two vLLM servers and one learner on a machine with three GPUs, without Ray.
#
#   examples/cluster/servers.sh
#
# To use servers on other machines, start them there in the same way and name them in --base_url. They must see the
# run's folder under the same path. A server that dies is left out, and used again once it is restarted.
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
OUT=${OUT:-runs/servers}
FIRST=${FIRST:-8001}
SECOND=${SECOND:-8002}
PATIENCE_S=${PATIENCE_S:-900}

serve() { # GPU PORT
    CUDA_VISIBLE_DEVICES=$1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_NO_USAGE_STATS=1 \
        vllm serve "$MODEL" --host 127.0.0.1 --port "$2" --enable-lora --max-loras 4 --max-lora-rank 8 \
        --max-logprobs -1 --enable-prompt-tokens-details > "server-$2.log" 2>&1 &
}

# However this script ends, it ends the servers.
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
serve 1 "$FIRST"
serve 2 "$SECOND"
for port in "$FIRST" "$SECOND"; do
    for ((second = 0; second < PATIENCE_S; second++)); do
        curl --silent --fail --max-time 5 "http://127.0.0.1:$port/health" > /dev/null && continue 2
        sleep 1
    done
    echo "the server on port $port did not start within $PATIENCE_S s: see server-$port.log" >&2
    exit 1
done

CUDA_VISIBLE_DEVICES=0 \
    flow-dpo train --model_name_or_path "$MODEL" --preset small --dataset_name openai/gsm8k --dataset_config main \
    --workers servers --base_url "http://127.0.0.1:$FIRST,http://127.0.0.1:$SECOND" \
    --workers.shard 4 --run.problems_per_batch 16 --run.lag 1 --output_dir "$OUT" "$@"
