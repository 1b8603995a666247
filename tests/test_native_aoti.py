"""AOTInductor's C interface, with a stand-in for a compiled network: who owns what, how many run, what is refused."""

import ctypes
import os
import resource
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pyflow import core, native
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to build a stand-in network")

LIBTORCH = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
SHAPE = (2, 3)
EULER = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(4))

# Predicts x, by giving the very handle back.
SOURCE = r"""
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
typedef void* tensor;
int32_t aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, tensor*);
int32_t aoti_torch_delete_tensor_object(tensor);
int32_t aoti_torch_dtype_float32(void);
int32_t aoti_torch_dtype_float64(void);

atomic_int inside, most;

#ifndef NO_CREATE
int32_t AOTInductorModelContainerCreateWithDevice(void** container, size_t models, const char* device, const char* b) {
  *container = &inside;
  return CREATE;
}
#endif
int32_t AOTInductorModelContainerDelete(void* container) { return 0; }
int32_t AOTInductorGetLastError(const char** message) {
  *message = REFUSED ? "aoti_torch_empty_strided(2, a, b) API call failed at here" : "the cat sat on it\nframe #0";
  return 0;
}
int32_t AOTInductorModelContainerGetNumInputs(void* container, size_t* count) { *count = INPUTS; return 0; }
int32_t AOTInductorModelContainerGetNumOutputs(void* container, size_t* count) { *count = OUTPUTS; return 0; }

int32_t AOTInductorModelContainerRun(void* c, tensor* in, size_t ins, tensor* out, size_t outs, void* s, void* proxy) {
  int now = atomic_fetch_add(&inside, 1) + 1, seen = atomic_load(&most);
  while (now > seen && !atomic_compare_exchange_weak(&most, &seen, now)) {}
  if (WAIT) usleep(WAIT);
  atomic_fetch_sub(&inside, 1);
  if (REFUSED) {
    int64_t size = -7, stride = 1;
    return aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_float32(), 0, -1, out);
  }
  if (FAIL) {
    for (size_t i = 0; i < FAIL - 1; ++i) { aoti_torch_delete_tensor_object(in[i]); in[i] = NULL; }
    return 1;
  }
  for (size_t i = 1; i < ins; ++i) aoti_torch_delete_tensor_object(in[i]);
  tensor x = in[0];
  for (size_t i = 0; i < ins; ++i) in[i] = NULL;
  if (!RANK && !NOTHING) { out[0] = x; return 0; }
  aoti_torch_delete_tensor_object(x);
  if (NOTHING) return 0;
  int64_t sizes[] = {3, 2, 3, 1}, strides[] = {6, 3, 1, 1};
  return aoti_torch_empty_strided(RANK, sizes, strides, DTYPE(), 0, -1, out);
}
"""
DEFAULTS = {
    "CREATE": "0",
    "INPUTS": "3",
    "OUTPUTS": "1",
    "WAIT": "0",
    "FAIL": "0",
    "RANK": "0",
    "NOTHING": "0",
    "REFUSED": "0",
    "DTYPE": "aoti_torch_dtype_float32",
}


@pytest.fixture
def network(tmp_path):
    """Compiles a stand-in network that takes x, s, label, with some things changed."""

    def build(**changes: object) -> Path:
        source, library = tmp_path / "network.c", tmp_path / f"network-{len(list(tmp_path.iterdir()))}.so"
        source.write_text(SOURCE)
        macros = [f"-D{name}={value}" for name, value in {**DEFAULTS, **changes}.items()]
        link = [LIBTORCH, "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"]
        subprocess.run(["cc", "-w", "-shared", "-fPIC", *macros, source, *link, "-o", library], check=True)
        return library

    return build


def opened(library, **changes):
    given = {"torch_library": LIBTORCH, "shape": SHAPE, "inputs": ("x", "s", "label"), "classes": 5, "device": "cpu"}
    return native.aoti_denoiser(library, **{**given, **changes})


def resident_kib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def grown_kib(function, times):
    """By how much the process grows, after a first call."""
    function()
    before = resident_kib()
    for _ in range(times):
        function()
    return resident_kib() - before


# ---- what it does
@pytest.mark.parametrize("staged", [False, True])
def test_it_runs_in_the_loop(network, staged):
    denoiser = native._C.AotiDenoiser(str(network()), str(LIBTORCH), SHAPE, 0, ["x", "s", "label"], 5, "cpu", staged)
    assert (denoiser.shape, denoiser.inputs) == (SHAPE, ("x", "s", "label"))

    def itself(x, s, t, label, out):
        out[...] = x

    got, expected = (
        native.sample(one, EULER, batch=3, seed=1, label=2, null_label=5, guidance=2.0).states
        for one in (denoiser, native.callable_denoiser(itself, SHAPE))
    )
    np.testing.assert_array_equal(got, expected)


def test_the_file_may_go_once_it_is_opened(network):
    library = network()
    denoiser = opened(library)
    library.unlink()
    assert np.isfinite(native.sample(denoiser, EULER, batch=2, label=0).states).all()


def test_no_more_runs_at_once_than_the_network_has_models(network):
    library = network(WAIT=3000)
    denoiser, together = opened(library), threading.Barrier(12)

    def run(seed):
        together.wait()
        return native.sample(denoiser, EULER, batch=2, seed=seed, label=0).states

    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(run, range(12)))
    most = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "most").value
    assert 1 <= most <= (os.cpu_count() or 1)
    for seed, states in enumerate(got):
        np.testing.assert_array_equal(states, native.sample(denoiser, EULER, batch=2, seed=seed, label=0).states)


def test_nothing_leaks_in_many_runs(network):
    rows = np.tile([0.0, 1, 1, 0.001, 0, 0, 1, 0], (20_000, 1))
    denoiser = opened(network())
    # A lost handle is 32 bytes, a lost tensor more than 200: 600 KiB and 4 MiB a run.
    assert grown_kib(lambda: native.sample(denoiser, rows, batch=1, label=0), 3) < 600


@pytest.mark.parametrize("taken", [0, 2])
def test_a_failed_run_is_told_and_leaks_nothing(network, taken):
    denoiser = opened(network(FAIL=taken + 1))

    def fail():
        with pytest.raises(RuntimeError, match=r"^the compiled network failed: the cat sat on it$"):
            native.sample(denoiser, EULER, batch=1, label=0)

    assert grown_kib(fail, 5000) < 1000


def test_a_refusal_by_libtorch_carries_its_reason(network):
    with pytest.raises(RuntimeError, match=r"network failed: aoti_torch_empty_strided: .*\[-7\]"):
        native.sample(opened(network(REFUSED=1)), EULER, batch=1, label=0)


# ---- what it refuses
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NO_CREATE": 1}, "does not export AOTInductorModelContainerCreateWithDevice; expected a library of AOTInd"),
        ({"CREATE": 1}, "did not start on cpu: the cat sat on it"),
        ({"INPUTS": 4}, "takes 4 inputs and makes 1 outputs; expected 3 and 1"),
        ({"OUTPUTS": 2}, "takes 3 inputs and makes 2 outputs; expected 3 and 1"),
    ],
)
def test_a_library_that_does_not_fit_is_refused(network, changes, message):
    with pytest.raises(InvalidArtefact, match=message):
        opened(network(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NOTHING": 1}, "made no prediction"),
        (
            {"RANK": 2},
            r"made \(3, 2\) of torch's dtype 6; expected float32 \(6\) with the shape of the state: \(3, 2, 3\)",
        ),
        ({"RANK": 4}, r"made \(3, 2, 3, 1\)"),
        ({"RANK": 3, "DTYPE": "aoti_torch_dtype_float64"}, r"made \(3, 2, 3\) of torch's dtype 7"),
    ],
)
def test_a_prediction_that_does_not_fit_is_refused(network, changes, message):
    denoiser = opened(network(**changes))
    with pytest.raises(InvalidArtefact, match=message):
        native.sample(denoiser, EULER, batch=3, label=0)


def test_another_batch_than_the_prediction_has_is_refused(network):
    denoiser = opened(network(RANK=3))
    assert native.sample(denoiser, EULER, batch=3, label=0).states.shape == (3, *SHAPE)
    with pytest.raises(InvalidArtefact, match=r"made \(3, 2, 3\) .* the shape of the state: \(4, 2, 3\)"):
        native.sample(denoiser, EULER, batch=4, label=0)


def test_labels_and_batches_are_checked_before_the_network_runs(network):
    denoiser = opened(network(FAIL=1))
    with pytest.raises(InvalidInput, match="a label is 6; expected 0 to 5, the last of them no label"):
        native.sample(denoiser, EULER, batch=3, label=[0, 6, 1])
    with pytest.raises(InvalidInput, match="a label is 9"):
        native.sample(denoiser, EULER, batch=3, null_label=9)
    with pytest.raises(InvalidInput, match=r"batches up to 1048576 and is asked for 1048578 \(guidance doubles"):
        native.sample(denoiser, EULER[:1], batch=2**19 + 1, label=0, null_label=5, guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("s", "label")}, "inputs is .*; expected x and any of s, t, label, each once"),
        ({"inputs": ("x", "x", "s")}, "each once"),
        ({"inputs": ("x", "mask")}, "expected x and any of"),
        ({"device": "tpu"}, "device is 'tpu'; expected cpu, cuda or cuda:0"),
        ({"device": "cuda:-1"}, "device is 'cuda:-1'"),
        ({"shape": (0, 3)}, "an extent of shape is 0"),
        ({"classes": -1}, "classes is -1"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        opened(Path("nowhere.so"), **changes)


def test_what_is_no_library_is_refused(tmp_path):
    with pytest.raises(InvalidArtefact, match=r"could not be opened: .*nowhere\.so.*export it again"):
        opened(Path("/nowhere.so"))
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(InvalidArtefact, match=r"could not be opened: .*text\.so"):
        opened(tmp_path / "text.so")


def test_a_torch_that_is_not_loaded_or_is_another_library_is_told(network):
    with pytest.raises(BackendUnavailable, match=r"/nowhere/libtorch_cpu\.so is not loaded in this process"):
        opened(network(), torch_library=Path("/nowhere/libtorch_cpu.so"))
    with pytest.raises(BackendUnavailable, match="does not export aoti_torch_device_type_cpu; expected torch"):
        opened(network(), torch_library=Path(native._C.__file__))
