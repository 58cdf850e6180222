#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in one go: build, tests, compute-sanitizer, bench.
#
#     tools/gpu_session.sh [build|tests|memcheck|racecheck|bench|strategies ...]   (default: all)
#
# Runs with the python3 that has torch (PYTHON=... for another) and installs nothing. Besides torch
# it needs numpy, pytest, hypothesis, click, rich, setuptools and pybind11, and nvcc; what is missing
# is named before anything starts. Where there is no registry, carry the wheels (all but numpy are
# pure Python) unpacked in a folder and name it in CARRY. COMMIT names the commit for the bench rows
# of a copy without history. With OUT set, logs and results.csv are copied there.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${CARRY:+:$CARRY}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
STAGES=("$@")
[ $# -gt 0 ] || STAGES=(build tests memcheck racecheck bench strategies)
LOGS=${OUT:-build/gpu}
mkdir -p "$LOGS"

"$PYTHON" - <<'PY'
import importlib.util, shutil, sys
needed = "torch numpy pytest hypothesis click rich setuptools pybind11".split()
missing = [n for n in needed if importlib.util.find_spec(n) is None]
missing += [t for t in ("nvcc", "g++") if shutil.which(t) is None]
sys.exit(f"missing here: {', '.join(missing)}" if missing else 0)
PY

build() {
    local arch
    arch=$("$PYTHON" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())")
    MIXCORE_CUDA=1 MIXCORE_CUDA_ARCHS="$arch" "$PYTHON" setup.py -q build_ext --inplace
    "$PYTHON" -c "import mixcore; assert mixcore.cuda_available(), mixcore.gpu.trouble()"
}
tests() {  # a skipped test is a failure here
    MIXCORE_REQUIRE_GPU=1 "$PYTHON" -m pytest -p no:cacheprovider -q -m gpu \
        tests/test_sampler_cuda.py tests/test_accumulate_cuda.py tests/test_accumulate.py
    "$PYTHON" -m pytest -p no:cacheprovider -q tests/test_grid.py
}
# Without torch's cache every tensor is an allocation of its own, so that an access beyond one shows.
sanitizer() {
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 MIXCORE_REQUIRE_GPU=1 compute-sanitizer --tool "$1" \
        --error-exitcode 9 "$PYTHON" -m pytest -p no:cacheprovider -q -x -m gpu \
        tests/test_sampler_cuda.py -k "$2"
}
SMALL="golden or (random_histories and (0 or 1 or 2)) or (strategies and 1024 and (32 or 256)) or most_domains"
memcheck() { sanitizer memcheck "$SMALL"; }
racecheck() { sanitizer racecheck "$SMALL"; }
bench() { "$PYTHON" bench/bench_cuda.py ${COMMIT:+--commit "$COMMIT"}; }
strategies() { "$PYTHON" bench/bench_cuda.py --strategies --no-write --repeats 3; }

for stage in "${STAGES[@]}"; do
    echo "== $stage"
    "$stage" 2>&1 | tee "$LOGS/$stage.log"
done
[ -z "${OUT:-}" ] || cp bench/results.csv "$OUT/"
