#!/usr/bin/env bash
# Everything that a GPU machine can show, without network: installation, doctor, the GPU tests, verify, compute-sanitizer,
# training and the benchmarks.
#
#   bash bench/gpu_machine.sh WHEELS OUT [--quick]
#
# WHEELS: a folder of wheels, made with the same Python where there is a network:
#   pip wheel -w WHEELS setuptools pytest pytest-benchmark ".[cuda12,peers]"
# All of them are installed. What the GPU machine's Python has already (torch, say) need not be among them.
# OUT: a folder for what comes back. A step writes OUT/STEP.txt, from its command to how it ended, and a step that ended
# isn't run again: after a stop the same line goes on. Every step runs, whatever happened to those before it, and the exit
# status is the number of those that failed. --quick ends within 10 minutes; use another OUT for it.
# PYTHON names the interpreter, FASTSNN_DATA the folder with MNIST, FASTSNN_COMMIT the commit where git can't tell.
set -u -o pipefail

if [[ $# -lt 2 || $# -gt 3 || ! -d $1 || ${3:---quick} != --quick ]]; then
    echo "usage: bash bench/gpu_machine.sh WHEELS OUT [--quick], where WHEELS is a folder that exists" >&2
    exit 64
fi
wheels=$(realpath "$1") out=$(realpath -m "$2") quick=${3:-}
cd "$(dirname "$0")/.."
base=${PYTHON:-python3} environment=${ENVIRONMENT:-$PWD/build/gpu-machine} failed=0
python=$environment/bin/python
export wheels base environment python PYTHONUNBUFFERED=1
mkdir -p "$out"

# step NAME LIMIT COMMAND...: run a command for at most LIMIT seconds.
step() {
    local log=$out/$1.txt limit=$2 name=$1 started=$SECONDS status
    shift 2
    if ! tail -n 1 "$log" 2>/dev/null | grep -q '^== '; then
        echo "\$ $*" | tee "$log"
        timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$log"
        status=$?
        case $status in
            0) status="passed after $((SECONDS - started)) s" ;;
            124 | 137) status="FAILED: not done after $limit s" ;;
            *) status="FAILED with exit status $status after $((SECONDS - started)) s" ;;
        esac
        printf '\n== %s\n' "$status" >>"$log"
    fi
    tail -n 1 "$log" | sed "s/^==/== $name:/"
    ! tail -n 1 "$log" | grep -q FAILED || failed=$((failed + 1))
}

# A virtual environment that also sees the packages of $base, itself perhaps one of a virtual environment.
install() {
    "$base" -m venv "$environment"
    "$base" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
        >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    "$python" -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
    "$python" -m pip install --quiet --no-index --find-links "$wheels" --editable . pytest pytest-benchmark
    "$python" -m pip list
}
export -f install

# measure NAME LIMIT OPTIONS...: benchmarks, into one results file; a case that is stopped loses itself alone.
measure() { step "$1" "$2" "$python" -m pytest bench -q --benchmark-only --results "$out/results.json" "${@:3}"; }

# The kernels that the benchmarks run, at small shapes; without a caching allocator every tensor has bounds of its own.
sanitize() {
    step "sanitizer-$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool "$1" --target-processes application-only --error-exitcode 1 \
        "$python" -m pytest bench -q --benchmark-only --tiny --peers "" --cases rate_step,scan,linear-24,recurrent-shd,encoding
}

if [[ $quick ]]; then
    limits=(90 30 65 65 80 60 45) tools=memcheck epochs=2
else
    limits=(500 60 540 540 540 540 540) tools="memcheck racecheck initcheck synccheck" epochs=20
fi

[[ -x $python ]] || rm -f "$out/install.txt"
step install "${limits[0]}" bash -ec install
step doctor "${limits[1]}" "$python" -m fastsnn doctor
step gpu-tests "${limits[2]}" "$python" -m pytest -q -m gpu tests
# Without a GPU these run in Triton's interpreter.
step kernel-tests "${limits[3]}" "$python" -m pytest -q tests/test_rate_step.py tests/test_forced_kernels.py
step verify "${limits[4]}" "$python" -m fastsnn verify $quick --json "$out/verify.json"
if command -v compute-sanitizer >/dev/null; then
    for tool in $tools; do sanitize "$tool" "${limits[5]}"; done
else
    step sanitizer 1 echo "compute-sanitizer is not on PATH: not run"
fi
step train "${limits[6]}" "$python" -m fastsnn train --epochs $epochs --overwrite --out "$out/train"
if "$python" -c 'import cupy; cupy.cuda.runtime.getDeviceCount()' 2>/dev/null; then
    step train-cupy "${limits[6]}" \
        "$python" -m fastsnn train --backend cupy --epochs $epochs --overwrite --out "$out/train-cupy"
fi
if [[ $quick ]]; then
    measure bench 120 --cases rate_step,scan,shd,encoding
else
    measure bench 3000 --full
fi
exit "$failed"
