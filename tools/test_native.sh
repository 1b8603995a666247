#!/usr/bin/env bash
# The core's own tests: as a user runs it, then watched for bad addresses, undefined behaviour and races; then spoiled
# network files for FUZZ_SECONDS. Needs cmake and ninja on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=(test_graph test_graph_rules test_memory test_executor test_kernels_attend test_kernels_convolve test_kernels_norm)

# $1: plain, address or thread; the rest are programs
build() {
  local sanitize=${1/plain/}
  cmake -S . -B "build/native-$1" -G Ninja -DPYFLOW_TESTS=ON -DPYFLOW_WERROR=ON -DPYFLOW_SANITIZE="$sanitize" >/dev/null
  cmake --build "build/native-$1" --target "${@:2}"
}

run() {
  echo "== $1 $2"
  UBSAN_OPTIONS=print_stacktrace=1 "build/native-$1/csrc/tests/$2" "${@:3}"
}

build plain "${tests[@]}"
for test in "${tests[@]}"; do run plain "$test"; done
build address "${tests[@]}" fuzz_graph
for test in "${tests[@]}"; do run address "$test"; done
build thread test_executor
run thread test_executor
run address fuzz_graph "${FUZZ_SECONDS:-180}"
