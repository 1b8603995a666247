#!/usr/bin/env bash
# Build the sdist, the wheel from that sdist, and run the wheel outside the tree beside its own needs and onnxruntime.
# Then deploy as a user would: engines made here, proved and sampled there, and once more under onnxruntime alone.
# $1: a Python that has `build` and a full pyflow, to make the engines that the wheel then samples.
set -euo pipefail
python=$(realpath -s "$1")
tree=$(realpath "$(dirname "$0")/..")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m build --sdist --outdir "$place/sdist" "$tree" >"$place/log" 2>&1 || { tail -50 "$place/log"; exit 1; }
"$python" -m pip wheel -q --no-deps --wheel-dir "$place/wheel" "$place"/sdist/*.tar.gz
"$python" "$tree/examples/deploy/make.py" "$place/engines"

"$python" -m venv "$place/clean"
"$place/clean/bin/pip" install -q -c "$tree/constraints.txt" "$(echo "$place"/wheel/*.whl)[onnx]"
"$python" -m venv "$place/plain"
"$place/plain/bin/pip" install -q -c "$tree/constraints.txt" onnxruntime
cp "$tree/tools/smoke.py" "$tree"/examples/deploy/*.py "$place"
cd "$place"
clean/bin/python smoke.py engines/denoiser.engine
clean/bin/pyflow verify engines/sampler.engine
clean/bin/python sample.py engines
plain/bin/python plain.py engines/sampler.engine/sampler-4.onnx
