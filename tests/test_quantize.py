"""int8 graphs: what they are calibrated on, what stays in float32, and how near to the reference they are."""

import logging
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import POINTS, UNET, network, save

from pyflow import certificate, checkpoint, core, load
from pyflow.engines import manifest as manifests
from pyflow.engines.manifest import BOUNDS
from pyflow.engines.onnx import graph as opened
from pyflow.engines.runner import LoopRunner, denoiser_of
from pyflow.errors import InvalidInput
from pyflow.export import export, quantize
from pyflow.export import onnx as builder
from pyflow.export.build import Order, shapes_of
from pyflow.export.shapes import UNROLLED_ROWS
from pyflow.models import build
from pyflow.spec import MLP, Spec

onnx = pytest.importorskip("onnx")
GUIDED = Spec(UNET, null_label=True)
INT8 = Order(precision="int8")


def traced(model, spec, order=INT8):
    return {f"{name}.onnx": builder.trace(shape, spec) for name, shape in shapes_of(model, spec, order).items()}


@pytest.fixture(scope="module")
def graph(tiny_engine):
    """The tiny UNet's denoiser in float32, to be read only."""
    return onnx.load_from_string((tiny_engine / "denoiser.onnx").read_bytes())


@pytest.fixture(scope="module")
def feeds(graph):
    return quantize.trajectories({"denoiser.onnx": graph}, GUIDED, INT8)["denoiser.onnx"]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "int8.engine"
    export(tiny_checkpoint, folder, order=INT8)
    return folder


# ---- what is published
def test_an_int8_engine_is_proved_smaller_and_sampled_by_the_cpp_loop(engine, tiny_engine, tiny_checkpoint, rng):
    manifest = manifests.read(engine)
    proved = manifest.certificate
    assert manifest.precision == "int8"
    assert proved.bound == BOUNDS["int8"]
    assert 30.0 <= proved.psnr < 60.0  # above, nothing was quantised
    small, large = (manifests.read(folder).files["denoiser.onnx"].bytes for folder in (engine, tiny_engine))
    assert small < 0.75 * large
    asked = {"steps": 4, "label": [0, 1, 2, 0], "guidance": 2.0, "seed": int(rng.integers(2**32))}
    flow = load(engine, threads=1)
    assert isinstance(flow.runner, LoopRunner)
    came, expected = flow.sample(4, **asked).states, load(tiny_checkpoint).sample(4, **asked).states
    assert certificate.psnr(came, expected) >= 30.0, asked


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A checkpoint of a UNet without attention, which is traced in half the time."""
    return save(tmp_path_factory.mktemp("flat") / "checkpoint", Spec(replace(UNET, attention=()), null_label=True))


def test_a_whole_sampler_is_quantised_too(flat, tmp_path):
    order = Order("sampler", "int8", steps=(2,), guidance=4.0)
    proved = export(flat, tmp_path / "a.engine", order=order).certificate
    assert 30.0 <= proved.psnr < 60.0


def test_steps_are_quantised_and_share_their_weights(flat, tmp_path):
    manifest = export(flat, tmp_path / "a.engine", order=Order("step", "int8"))
    assert 30.0 <= manifest.certificate.psnr < 60.0
    files = manifests.payload(tmp_path / "a.engine", manifest)
    plain, guided = (
        {
            tensor.name: [entry.value for entry in tensor.external_data]
            for tensor in onnx.load_from_string(files[f"{name}.onnx"]).graph.initializer
            if tensor.external_data and tensor.data_type == onnx.TensorProto.INT8
        }
        for name in ("step", "step-guided")
    )
    assert plain
    assert plain == guided


def test_quantising_leaves_no_file_and_says_nothing(graph, feeds, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = logging.root.manager.disable
    original = graph.SerializeToString()
    quantize.with_int8(graph, feeds[:2], UNET)
    assert graph.SerializeToString() == original
    assert not list(tmp_path.iterdir())
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


def test_half_precision_is_proved_and_half_as_large(flat, tmp_path):
    manifest = export(flat, tmp_path / "a.engine", order=Order(precision="fp16"))
    assert 40.0 <= manifest.certificate.psnr < 100.0
    graph = onnx.load(tmp_path / "a.engine" / "denoiser.onnx").graph
    large = [tensor for tensor in graph.initializer if tensor.name.endswith(".weight")]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}


# ---- what is quantised
def test_the_sensitive_layers_stay_in_float32(graph, feeds):
    made = quantize.with_int8(graph, feeds[:2], UNET)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    int8 = {name.removesuffix("_quantized") for name, tensor in tensors.items() if name.endswith("weight_quantized")}
    layers = {name for name in (tensor.name for tensor in graph.graph.initializer) if name.endswith(".weight")}
    float_layers = quantize.float_layers(UNET)
    assert float_layers == ("enter", "leave", "condition", "skip", "up.3", "up.4")
    kept = {name for name in layers for layer in float_layers if f".{layer}." in name}
    assert kept
    assert int8 == layers - kept
    assert all(tensors[f"{name}_quantized"].data_type == onnx.TensorProto.INT8 for name in int8)
    scales = onnx.numpy_helper.to_array(tensors["model.down.0.conv1.weight_scale"])
    assert scales.shape == (8,)  # one a channel


# ---- what it is calibrated on
def test_the_feeds_are_what_the_denoiser_sees_along_the_plans(feeds):
    rows = sum(quantize.STEPS)
    batches = [len(feed["x"]) for feed in feeds]
    assert sorted(batches) == [quantize.PICTURES] * rows + [2 * quantize.PICTURES] * rows  # alone, and guided
    assert {float(feed["s"][0]) for feed in feeds} == {k / steps for steps in quantize.STEPS for k in range(steps)}
    assert all(set(feed["label"]) == {0, 1, 2, 3} for feed in feeds)  # with the null label
    starts = [feed["x"] for feed in feeds if feed["s"][0] == 0.0]
    assert all(not np.array_equal(one, other) for one, other in zip(starts, starts[1:]))


def test_the_feeds_of_two_steps_are_the_states_of_the_reference(tiny_checkpoint, feeds):
    model, spec = checkpoint.load(tiny_checkpoint)
    number = 2 * quantize.STEPS.index(2)  # unguided before guided
    plan = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(2))
    case = certificate.Case(plan, quantize.PICTURES, 1.0, masked=False)
    asked = certificate.request_of(case, spec, quantize.SEED + number)
    half = certificate.reference(model, spec, replace(asked, plan=plan[:1]))
    (seen,) = [
        f["x"] for f in feeds if f["s"][0] == 0.5 and np.abs(f["x"][:16] - half).max() < 1e-4 and len(f["x"]) == 16
    ]
    np.testing.assert_allclose(seen, half, atol=1e-5)


def test_whole_samplers_are_calibrated_on_noise_and_labels():
    spec, order = Spec(POINTS), Order("sampler", "int8", steps=(1, 2))
    feeds = quantize.trajectories(traced(network(POINTS, 0), spec, order), spec, order)
    assert [(name, len(given)) for name, given in feeds.items()] == [("sampler-1.onnx", 1), ("sampler-2.onnx", 1)]
    assert all(set(feed) == {"noise", "label"} for given in feeds.values() for feed in given)


WIDE = Spec(MLP(shape=(2,), width=64, depth=3, classes=3))


def trained_on_wide_data(seed: int):
    """Three clouds, sixteen times as far out as the noise."""
    torch.manual_seed(seed)
    model = build(WIDE.network)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    clouds = torch.tensor([[16.0, 0.0], [-8.0, 14.0], [-8.0, -14.0]])
    for _ in range(300):
        label, t = torch.randint(0, 3, (256,)), torch.rand(256)
        image, noise = clouds[label] + 0.1 * torch.randn(256, 2), torch.randn(256, 2)
        state = core.LINEAR.mix(image, noise, t[:, None])
        loss = (model(state, t, t, label) - (image - noise)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def random_like(feed, rng):
    draw = {"x": rng.standard_normal, "s": rng.random, "label": lambda shape: rng.integers(0, 3, shape)}
    return {name: draw[name](value.shape).astype(value.dtype) for name, value in feed.items()}


def test_trajectories_calibrate_better_than_random_inputs(rng):
    seed = int(rng.integers(2**31))
    model = trained_on_wide_data(seed)
    graph = traced(model, WIDE)["denoiser.onnx"]
    trajectories = quantize.trajectories({"denoiser.onnx": graph}, WIDE, INT8)["denoiser.onnx"]
    cases = [case for case in certificate.cases(WIDE) if case.batch == 16 and not case.masked]
    expected = certificate.Expected(WIDE, cases, seed).compute(model)

    def worst(feeds) -> float:
        content = quantize.with_int8(graph, feeds, WIDE.network).SerializeToString()
        call = opened({"int8": content}, "int8", threads=1)
        runner = LoopRunner(denoiser_of(call, ("x", "s", "label"), WIDE.network.shape))
        states = [runner.run(certificate.request_of(case, WIDE, seed)).states for case in cases]
        return min(certificate.psnr(came, expected.of(case), expected.extent) for came, case in zip(states, cases))

    ours, theirs = worst(trajectories), worst([random_like(feed, rng) for feed in trajectories])
    assert ours > theirs + 5, f"seed {seed}: {ours:.1f} dB on trajectories, {theirs:.1f} dB on random inputs"


# ---- what is refused
def test_a_long_plan_and_a_network_without_a_middle_are_refused(tiny_checkpoint, tmp_path):
    long = Order("sampler", "int8", steps=(1, UNROLLED_ROWS + 1))
    with pytest.raises(InvalidInput, match=f"{UNROLLED_ROWS + 1} rows; expected at most {UNROLLED_ROWS}"):
        export(tiny_checkpoint, tmp_path / "a.engine", order=long)
    shallow = save(tmp_path / "shallow", Spec(replace(POINTS, depth=1)))
    with pytest.raises(InvalidInput, match="no layer between its first and last; expected fp32"):
        export(shallow, tmp_path / "a.engine", order=INT8)
    assert not (tmp_path / "a.engine").exists()
