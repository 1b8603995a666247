#!/usr/bin/env bash
# Install the pinned torch into the environment $1: the CUDA build where an NVIDIA driver answers, else the CPU build.
# A bare `pip install torch` would bring gigabytes of CUDA to every machine.
set -euo pipefail
environment=$1
pin=$(grep '^torch==' "$(dirname "$0")/../constraints.txt")

if "$environment/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' \
  "${pin#torch==}" 2>/dev/null; then
  exit 0
fi
if nvidia-smi -L >/dev/null 2>&1; then
  echo "NVIDIA driver found: installing $pin for CUDA"
  "$environment/bin/pip" install -q "$pin"
else
  echo "no NVIDIA driver: installing $pin for the CPU"
  # The CPU build is not on every index; uv knows where torch keeps it.
  "$environment/bin/pip" install -q "$pin+cpu" 2>/dev/null || {
    "$environment/bin/pip" install -q uv
    "$environment/bin/uv" pip install -q --python "$environment/bin/python" --torch-backend cpu "$pin"
  }
fi
