#!/usr/bin/env bash
# A tiny GPT on the demo's data, through megatron.training, on two ranks without a GPU:
#   make demo megatron && examples/megatron/run.sh [demo-out] [further flags of Megatron]
# Both ranks take part in every batch (data parallel). Needs what `make` and `make megatron` install.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tokens=$(cd "${1:-$root/demo-out}/tokens" && pwd)
out=${OUT:-$root/demo-out-megatron}
shift || true

data=()
for index in "$tokens"/*.idx; do
    data+=(1 "${index%.idx}")
done

# The shim stands in for torch.cuda; a machine with GPUs needs neither it nor the flags on one line
# with it.
shim="--transformer-impl local --distributed-backend gloo --use-cpu-initialization --clip-grad 0
    --no-masked-softmax-fusion --no-bias-gelu-fusion --no-bias-dropout-fusion --no-rope-fusion
    --no-gradient-accumulation-fusion --no-persist-layer-norm --attention-dropout 0 --hidden-dropout 0"
export PYTHONPATH="$root/tests/megatron_lm/site:$root/build/megatron-core-0.19.2:$root"
export NO_VCS_VERSION=1 CUDA_DEVICE_MAX_CONNECTIONS=1 OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1

# shellcheck disable=SC2086
exec torchrun --nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0 -m megatron_patch \
    "$here/pretrain_gpt.py" $shim \
    --num-layers 2 --hidden-size 64 --num-attention-heads 4 --lr 1e-3 \
    --tokenizer-type NullTokenizer --vocab-size 2049 --no-create-attention-mask-in-dataloader \
    --seq-length 64 --max-position-embeddings 64 --micro-batch-size 4 --global-batch-size 16 \
    --train-iters 200 --split 100,0,0 --eval-iters 0 --eval-interval 1000 --log-interval 20 \
    --save "$out" --load "$out" --save-interval 100 --ckpt-format torch \
    --override-opt_param-scheduler \
    --data-path "${data[@]}" --data-cache-path "$out/cache" \
    --mix-config "$here/mix.yaml" "$@"
