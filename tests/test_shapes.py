"""The shapes of an export: a step is `core.fused_step`, a sampler is `core.sample`, unrolled or as a loop."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import POINTS, UNET, network
from torch import nn

from pyflow import core, native
from pyflow.core import Row
from pyflow.engines import eager
from pyflow.engines.onnx import graph as opened
from pyflow.export import onnx as builder
from pyflow.export.build import Order
from pyflow.export.shapes import UNROLLED_ROWS, Denoiser, Sampler, Step
from pyflow.models import parameters
from pyflow.spec import Spec, UNet

onnx = pytest.importorskip("onnx")
GUIDED = Spec(UNET, null_label=True)
SOLVERS = ("euler", "heun", "ab2", "ddim")


@pytest.fixture(scope="module")
def model():
    return network(UNET, 3)


@pytest.fixture(scope="module")
def denoiser(model):
    return Denoiser(model, GUIDED)


def plan_of(solver: str, steps: int):
    return core.SOLVERS[solver](core.LINEAR, core.VELOCITY, core.uniform_grid(steps))


def start(spec: Spec, batch: int, rng):
    noise = torch.from_numpy(rng.standard_normal((batch, *spec.network.shape)).astype(np.float32))
    return noise, torch.from_numpy(rng.integers(0, spec.network.classes, batch))


def reference(model, spec, plan, noise, label, guidance=1.0):
    return core.sample(eager.denoise_function(model, spec, label), plan, lambda _: noise, guidance=guidance).numpy()


def assert_near(came, expected, guidance: float = 1.0) -> None:
    assert np.abs(np.asarray(came) - expected).max() <= 1e-5 * max(1.0, guidance) * np.abs(expected).max()


# ---- steps
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_a_step_is_the_fused_step_around_the_network(model, denoiser, rng, guidance, masked):
    """An operand whose coefficient is zero holds NaN: it must not be seen."""
    step = Step(denoiser, GUIDED, guided=guidance != 1.0)
    for batch in (1, 3, 16):
        for zeros in ((), ("h",), ("n",), ("h", "n"), ("a", "h", "n"), ("b", "h"), ("h", "n", "ka"), ("h", "n", "ks")):
            s, *others = rng.uniform(0.1, 1.0, 8)
            row = Row(s, *others)._replace(**dict.fromkeys(zeros, 0.0))
            x, label = start(GUIDED, batch, rng)
            given = {name: start(GUIDED, batch, rng)[0] for name in ("previous", "noise", "image", "noise0")}
            for coefficient, operand in (("h", "previous"), ("n", "noise"), ("ka", "image"), ("ks", "noise0")):
                if coefficient in zeros:
                    given[operand] = torch.full_like(x, torch.nan)
            mask = (torch.rand_like(x) < 0.5).float() if masked else torch.ones_like(x)
            inputs = {**given, "row": torch.tensor(row), "x": x, "mask": mask, "label": label}
            inputs["guidance"] = torch.tensor([guidance])
            came, prediction = step(*(inputs[name] for name in step.names))

            denoise = eager.denoise_function(model, GUIDED, label)
            cond = denoise(x, row.s, row.t, True)
            uncond = denoise(x, row.s, row.t, False) if guidance != 1.0 else None
            known = {"mask": mask, "image": given["image"], "noise0": given["noise0"]} if masked else {}
            operands = {"previous": given["previous"], "noise": given["noise"], "guidance": guidance, **known}
            expected, p = core.fused_step(row, x=x, cond=cond, uncond=uncond, **operands)
            assert_near(came, expected.numpy(), guidance)
            assert_near(prediction, p.numpy(), guidance)


# ---- whole samplers, as modules
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@torch.inference_mode()
def test_a_sampler_is_the_reference_loop(model, denoiser, rng, solver, guidance):
    for steps in (1, 2, 4):
        plan = plan_of(solver, steps)
        for batch in (1, 3, 16):
            noise, label = start(GUIDED, batch, rng)
            states, images = Sampler(denoiser, GUIDED, plan, guidance)(noise, label)
            assert_near(states, reference(model, GUIDED, plan, noise, label, guidance), guidance)
            differences = np.abs(images.numpy().astype(int) - native.to_uint8(states.numpy()))
            assert differences.max() <= 1
            assert (differences > 0).mean() <= 1e-3


def test_pictures_are_rounded_as_the_cpp_code_rounds_them(denoiser):
    """Every border between two levels, and its neighbours on both sides."""
    borders = ((np.arange(-2, 258) - 127.0) / 127.5).astype(np.float32)
    near = np.concatenate([np.nextafter(borders, -9), borders, np.nextafter(borders, 9), [1e6, -1e6]])
    states = np.resize(near, (13, 1, 8, 8)).astype(np.float32)
    sampler = Sampler(denoiser, GUIDED, [], 1.0)
    _, images = sampler(torch.from_numpy(states), torch.zeros(len(states), dtype=torch.int64))
    differences = np.abs(images.numpy().astype(int) - native.to_uint8(states))
    assert differences.max() <= 1
    assert images.shape == (13, 8, 8, 1)


# ---- unrolled graphs
FLAT = Spec(UNet(shape=(1, 8, 8), channels=32, multipliers=(1, 2), blocks=1, attention=(), classes=3), null_label=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two samplers, of 1 and 4 steps with guidance, as files."""
    order = Order("sampler", steps=(1, 4), guidance=2.0)
    folder = tmp_path_factory.mktemp("samplers")
    for name, content in builder.build(network(FLAT.network, 5), FLAT, order).files.items():
        (folder / name).write_bytes(content)
    return folder


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def test_times_are_constants_of_an_unrolled_sampler(folder):
    for name in ("sampler-1.onnx", "sampler-4.onnx"):
        graph = onnx.load(folder / name, load_external_data=False).graph
        kinds = [node.op_type for node in nodes_of(graph)]
        assert "Conv" in kinds
        assert not {"Sin", "Cos", "Loop"} & set(kinds)


def test_weights_are_stored_once(folder):
    alone = [onnx.load(folder / f"sampler-{steps}.onnx") for steps in (1, 4)]  # with the weights read in
    one, four = (len(model.SerializeToString()) for model in alone)
    assert four < 1.5 * one
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.5 * four
    assert (folder / "weights.bin").stat().st_size > 0.7 * one


PLAIN = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = np.load(sys.argv[2])
states, images = session.run(["states", "images"], {"noise": given["noise"], "label": given["label"]})
assert not {"pyflow", "torch"} & set(sys.modules)
np.savez(sys.argv[3], states=states, images=images)
"""


def test_a_sampler_runs_without_pyflow(folder, tmp_path, rng):
    noise, label = start(FLAT, 3, rng)
    np.savez(tmp_path / "in.npz", noise=noise.numpy(), label=label.numpy())
    paths = [str(path) for path in (folder / "sampler-4.onnx", tmp_path / "in.npz", tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-I", "-c", PLAIN, *paths], check=True)
    came = np.load(tmp_path / "out.npz")
    expected = reference(network(FLAT.network, 5), FLAT, plan_of("euler", 4), noise, label, 2.0)
    assert_near(came["states"], expected, 2.0)
    differences = np.abs(came["images"].astype(int) - native.to_uint8(came["states"]))
    assert differences.max() <= 1
    assert (differences > 0).mean() <= 1e-3


# ---- loops
LOOPS = {
    "points with two times": (Spec(POINTS), "euler", 50, 1.0),
    "points that remember": (Spec(POINTS), "ab2", 50, 1.0),
    "pictures with guidance": (GUIDED, "heun", 25, 4.0),
}


@pytest.mark.parametrize(("spec", "solver", "steps", "guidance"), LOOPS.values(), ids=LOOPS.keys())
def test_a_long_plan_is_a_loop_with_the_network_in_it_once(spec, solver, steps, guidance, rng):
    model, plan = network(spec.network, 3), plan_of(solver, steps)
    traced = builder.trace(Sampler(Denoiser(model, spec), spec, plan, guidance), spec)
    content = traced.SerializeToString()
    assert [node.op_type for node in traced.graph.node].count("Loop") == 1
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert sum(node.op_type in ("Conv", "Gemm") for node in nodes_of(traced.graph)) == layers
    assert len(content) < 4 * parameters(model) + 100_000
    call = opened({"loop": content}, "loop", threads=1)
    for batch in (1, 3, 16):
        noise, label = start(spec, batch, rng)
        states = call({"noise": noise.numpy(), "label": label.numpy()})[0]
        assert_near(states, reference(model, spec, plan, noise, label, guidance), guidance)


def test_the_longest_unrolled_plan_is_as_the_shortest_loop(rng):
    spec, model = Spec(POINTS), network(POINTS, 3)
    noise, label = start(spec, 4, rng)
    for rows in (UNROLLED_ROWS, UNROLLED_ROWS + 1):
        plan = plan_of("ab2", rows)
        traced = builder.trace(Sampler(Denoiser(model, spec), spec, plan, 1.0), spec)
        assert ("Loop" in {node.op_type for node in traced.graph.node}) == (rows > UNROLLED_ROWS)
        session = onnxruntime.InferenceSession(traced.SerializeToString(), providers=["CPUExecutionProvider"])
        (states,) = session.run(["states"], {"noise": noise.numpy(), "label": label.numpy()})
        assert_near(states, reference(model, spec, plan, noise, label))


def test_weights_stand_inside_of_the_loop():
    """Outside, ONNX Runtime does not lay them out for its fast convolutions."""
    spec = Spec(POINTS)
    traced = builder.trace(Sampler(Denoiser(network(POINTS, 3), spec), spec, plan_of("euler", 20), 1.0), spec)
    (loop,) = [node for node in traced.graph.node if node.op_type == "Loop"]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    assert any(tensor.name.endswith("hidden.0.weight") for tensor in body.initializer)
    assert not any(tensor.name.endswith("weight") for tensor in traced.graph.initializer)
