#!/usr/bin/env bash
# Build the sdist, the wheel from that sdist, and run the wheel outside the tree beside numpy and onnxruntime only.
# $1: a Python that has `build` and a full pyflow, to make the engine that the wheel then samples.
set -euo pipefail
python=$(realpath -s "$1")
tree=$(realpath "$(dirname "$0")/..")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m build --sdist --outdir "$place/sdist" "$tree" >"$place/log" 2>&1 || { tail -50 "$place/log"; exit 1; }
"$python" -m pip wheel -q --no-deps --wheel-dir "$place/wheel" "$place"/sdist/*.tar.gz
"$python" "$tree/tools/tiny_engine.py" "$place/tiny.engine"

"$python" -m venv "$place/clean"
"$place/clean/bin/pip" install -q -c "$tree/constraints.txt" "$(echo "$place"/wheel/*.whl)[onnx]"
cp "$tree/tools/smoke.py" "$place"
cd "$place"
"$place/clean/bin/python" smoke.py tiny.engine
