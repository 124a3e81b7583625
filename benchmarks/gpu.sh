#!/usr/bin/env bash
# What a GPU has to show, in one go, on a machine that has PyTorch and no network.
#
#   benchmarks/gpu.sh prepare .whl      # where there is a network: what that machine lacks, for Python 3.12 on Linux
#   benchmarks/gpu.sh run .whl out      # there: tests marked cuda, then benchmarks/gpu.py; under eight minutes
#   benchmarks/gpu.sh run .whl out --device cpu --small     # to see that it runs, without a GPU
#
# What is finished counts, also if it is cut off: out/tests.log, out/gpu.log and out/gpu.jsonl grow as it goes.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?prepare or run} wheels=${2:?folder of wheels}

if [ "$what" = prepare ]; then
  mkdir -p "$wheels"
  python3 -m pip wheel -q --no-deps -w "$wheels" .
  rm -rf build
  platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    -d "$wheels" zennit==1.0.0 optuna alembic Mako colorlog SQLAlchemy greenlet cmaes platformdirs plotly
  ls -sh "$wheels"
  exit
fi

out=${3:?folder for the results}
shift 3
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
export PYTHONPATH="$site" PYTHONUNBUFFERED=1
python3 -c "import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')" \
  | tee "$out/machine.txt"
timeout 180 python3 -m pytest -q -p no:cacheprovider -m cuda --continue-on-collection-errors tests 2>&1 | tee "$out/tests.log" | tail -n 3 || true
timeout 300 python3 benchmarks/gpu.py --json "$out/gpu.jsonl" "$@" 2>&1 | tee "$out/gpu.log" || true
