#!/bin/bash
# Everything that a GPU machine can show, without network: install, doctor, verify, the GPU tests, the benchmarks.
#
#   bench/gpu_machine.sh WHEELS OUT [--quick] [pytest options of bench/, as --peer-env PATH]
#
# WHEELS: a folder of carried wheels, made where there is a network:
#   pip wheel --no-deps -w WHEELS . && pip download --only-binary=:all: -d WHEELS PACKAGE...
# of what the machine lacks; torch and what else it has stay its own. OUT: a folder for the files that come back.
# With --quick it ends within 10 minutes. PYTHON names the interpreter. Each step runs even where one before it failed,
# and the script's exit status is the number of those that did.
set -u -o pipefail

wheels=$(realpath "$1") out=$(realpath -m "$2")
shift 2
python=${PYTHON:-python3} site=$(mktemp -d) failed=0
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [[ " $* " == *" --quick "* ]]; then
    quick=--quick limits=(40 30 120 150 230)
else
    quick="" limits=(300 60 1800 1800 3600)
fi

# step NAME LIMIT COMMAND...: run a command for at most LIMIT seconds, with its output in OUT/NAME.txt as well.
step() {
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    echo "== $name: $*"
    if timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt"; then
        echo "== $name: done after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
    else
        echo "== $name: FAILED after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
        failed=$((failed + 1))
    fi
}

: >"$out/summary.txt"
step install "${limits[0]}" "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl
step doctor "${limits[1]}" "$python" -m fastsnn doctor
step verify "${limits[2]}" "$python" -m fastsnn verify $quick --json "$out/verify.json"
step gpu-tests "${limits[3]}" "$python" -m pytest -q -m gpu tests
step bench "${limits[4]}" "$python" -m pytest bench --benchmark-only --results "$out/results.json" "$@"
rm -rf "$site"
exit "$failed"
