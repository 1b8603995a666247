"""Native engines: what a network is lowered to, how it is calibrated and tuned, and what is published and refused."""

import mmap
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from graph_reference import Reference  # noqa: E402 - after the skip
from tiny import POINTS, UNET, network, save  # noqa: E402
from torch import nn  # noqa: E402

from pyflow import certificate, engines, load, native  # noqa: E402
from pyflow.cli import main  # noqa: E402
from pyflow.core import Row  # noqa: E402
from pyflow.engines import manifest as manifests  # noqa: E402
from pyflow.engines.graph import Algorithm, Kind, Type  # noqa: E402
from pyflow.engines.manifest import NETWORK  # noqa: E402
from pyflow.engines.runner import LoopRunner  # noqa: E402
from pyflow.errors import InvalidArtefact, InvalidInput  # noqa: E402
from pyflow.export import calibration, export, tuning  # noqa: E402
from pyflow.export import native as exporter  # noqa: E402
from pyflow.export.build import Order  # noqa: E402
from pyflow.export.lowering import lower  # noqa: E402
from pyflow.export.ways import (  # noqa: E402
    BFLOAT16_WAYS,
    DIRECT_FLOAT,
    FLOAT_WAYS,
    WAYS,
    WINOGRAD2_FLOAT,
    WINOGRAD2X4_BFLOAT16,
    WINOGRAD4_BFLOAT16,
    WINOGRAD4_FLOAT,
    Layer,
    Way,
    preferring,
    ways,
)
from pyflow.models import lowered  # noqa: E402
from pyflow.spec import MLP, Spec, UNet, input_shape  # noqa: E402

GUIDED = Spec(UNET, null_label=True)
BFLOAT16, INT8 = Way(Algorithm.DIRECT, Type.BF16), Way(Algorithm.DIRECT, Type.S8)
WINOGRAD2_BFLOAT16 = Way(Algorithm.WINOGRAD2, Type.BF16)
NETWORKS = {
    "tiny": UNET,
    "attention everywhere": replace(UNET, attention=(4, 8), heads=4, times=2),
    "three levels, two blocks": UNet((3, 12, 20), 16, (1, 2, 3), 2, attention=(3,), heads=2, classes=0),
    "tiles of every size": UNet((2, 16, 16), 8, (1, 2), 1, attention=(), heads=1, classes=0),
    "told of a mask": replace(UNET, shape=(2, 8, 8), extra=3),
    "one level": UNet((2, 5, 7), 8, (2,), 1, attention=(), heads=1, classes=2),
    "points": POINTS,
    "points, wide": MLP(shape=(5,), width=36, depth=4, classes=0),
    "points, shallow": MLP(shape=(2,), width=10, depth=1, classes=2, times=2, fastest_wave=7.0),
}


def draw(spec, rng, batch=3):
    x = rng.standard_normal((batch, *input_shape(spec.network))).astype(np.float32)
    s, t = rng.random((2, batch)).astype(np.float32)
    return x, s, t, rng.integers(0, spec.network.classes + 1, batch)


def truth(model, given):
    x, *rest = (torch.from_numpy(array) for array in given)
    with torch.inference_mode():
        return lowered(model, torch.float64)(x.double(), *rest).numpy()


def error(came, expected):
    return np.abs(came - expected).max() / np.abs(expected).max()


def predicted(content, x, s, t, label):
    """What the executor predicts at one time for all."""
    denoiser = native.network_denoiser(content, threads=1)
    plan = [Row(s, t, a=0.0, b=1.0, h=0.0, n=0.0, ka=0.0, ks=0.0)]
    asked = label if "label" in denoiser.inputs else None
    state, told = np.split(x, [denoiser.shape[0]], axis=1)
    told = told if denoiser.extra else None
    return native.sample(denoiser, plan, batch=len(x), noise0=state, label=asked, told=told).states


# ---- what a network is lowered to
@pytest.mark.parametrize("way", WAYS["fp32"], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_operations_compute_the_network(name, way, rng):
    spec = Spec(NETWORKS[name])
    model, given = network(spec.network, int(rng.integers(2**31))), draw(spec, rng)
    content = lower(model, spec, preferring(way, "fp32", spec.network)).to_bytes()
    assert error(Reference(content)(*given), truth(model, given)) < 1e-6
    x, (s, *_), (t, *_), label = given
    told = [np.full(len(x), time, np.float32) for time in (s, t)]
    assert error(predicted(content, x, s, t, label), truth(model, (x, *told, label))) < 1e-5


@pytest.mark.parametrize("way", BFLOAT16_WAYS, ids=str)
@pytest.mark.parametrize("name", ["tiny", "three levels, two blocks", "tiles of every size", "points, wide"])
def test_bfloat16_layers_err_as_bfloat16_does(name, way, rng):
    spec = Spec(NETWORKS[name])
    model, given = network(spec.network, int(rng.integers(2**31))), draw(spec, rng)
    graph = lower(model, spec, preferring(way, "bf16", spec.network))
    assert way in [Way(made.algorithm, made.weights_type) for made in graph.operations] or name != "tiles of every size"
    assert 1e-5 < error(Reference(graph.to_bytes())(*given), truth(model, given)) < 3e-2


def test_int8_layers_err_as_int8_does(rng):
    model, given = network(UNET, int(rng.integers(2**31))), draw(GUIDED, rng)
    names = exporter._layers_of_the_lowest(model, GUIDED, "int8")
    ranges = calibration.ranges(model, GUIDED, Order(precision="int8"), names)
    graph = lower(model, GUIDED, preferring(INT8, "int8", UNET), ranges)
    assert [made.name for made in graph.operations if made.weights_type == Type.S8] == names
    assert 1e-4 < error(Reference(graph.to_bytes())(*given), truth(model, given)) < 0.1


def test_a_concatenation_is_no_operation():
    graph = lower(network(UNET), GUIDED, preferring(DIRECT_FLOAT, "fp32", UNET))
    made = {operation.name: operation for operation in graph.operations}
    above, kept = (graph.tensors[made[name].output] for name in ("middle.1.conv2", "down.2.attention.out"))
    assert above.buffer == kept.buffer
    assert (above.offset, kept.offset) == (0, above.channels)
    whole = graph.tensors[made["up.0.norm1"].input]
    assert (whole.buffer, whole.channels) == (above.buffer, above.channels + kept.channels)
    assert graph.tensors[made["middle.0.norm1"].input] == kept


def test_sensitive_layers_stay_float32_in_every_precision():
    for precision in ("bf16", "int8"):
        graph = lower(network(UNET), GUIDED, preferring(BFLOAT16, precision, UNET))
        floats = {made.name for made in graph.operations if made.kind == Kind.CONVOLVE and not made.weights_type}
        assert floats == {"enter", "leave", "film", "condition.project.0", "condition.project.2"}


@pytest.mark.parametrize(
    ("changes", "precision", "expected"),
    [
        ({}, "fp32", [WINOGRAD4_FLOAT, WINOGRAD2_FLOAT, DIRECT_FLOAT]),
        ({"height": 4}, "fp32", [WINOGRAD2_FLOAT, DIRECT_FLOAT]),
        ({"width": 6}, "fp32", [WINOGRAD2_FLOAT, DIRECT_FLOAT]),
        ({"width": 7}, "fp32", [DIRECT_FLOAT]),
        ({"stride": 2}, "fp32", [DIRECT_FLOAT]),
        ({}, "bf16", [WINOGRAD2X4_BFLOAT16, WINOGRAD2_BFLOAT16, BFLOAT16, *FLOAT_WAYS]),
        ({"height": 16, "width": 16}, "bf16", [*BFLOAT16_WAYS, *FLOAT_WAYS]),
        ({"height": 4}, "bf16", [WINOGRAD2X4_BFLOAT16, WINOGRAD2_BFLOAT16, BFLOAT16, WINOGRAD2_FLOAT, DIRECT_FLOAT]),
        ({"taps": 1}, "bf16", [BFLOAT16, DIRECT_FLOAT]),
        ({"taps": 1, "inputs": 6}, "bf16", [DIRECT_FLOAT]),
        ({"stride": 2}, "int8", [INT8, BFLOAT16, DIRECT_FLOAT]),
        ({"stride": 2, "name": "up.3.conv1"}, "int8", [BFLOAT16, DIRECT_FLOAT]),
        ({"taps": 1, "name": "down.2.skip"}, "int8", [BFLOAT16, DIRECT_FLOAT]),
        ({"name": "leave"}, "int8", [WINOGRAD4_FLOAT, WINOGRAD2_FLOAT, DIRECT_FLOAT]),
    ],
    ids=str,
)
def test_the_ways_that_a_layer_may_take(changes, precision, expected):
    layer = Layer("down.0.conv1", inputs=8, outputs=8, taps=3, stride=1, height=8, width=8)
    assert ways(layer._replace(**changes), precision, UNET) == expected


# ---- what it is calibrated on
def test_ranges_are_of_what_the_layers_are_given(rng):
    model = network(UNET, int(rng.integers(2**31)))
    ranges = calibration.ranges(model, GUIDED, Order(precision="int8"), ["down.0.conv2", "middle.0.attention.qkv"])
    silu, norm = ranges["down.0.conv2"], ranges["middle.0.attention.qkv"]
    assert 0.05 < silu.zero * silu.scale < 0.3, "SiLU is -0.278 or more"
    assert norm.zero * norm.scale > 1, "a norm has both signs"
    assert 1 < (255 - norm.zero) * norm.scale < 10
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_best_range_clips_what_is_rare_and_holds_zero(rng):
    values = rng.standard_normal(100_000).astype(np.float32)
    whole = calibration.best_range(np.linspace(-1, 3, 10_001, dtype=np.float32))
    assert whole.zero == 64
    assert whole.scale == pytest.approx(4 / 255)
    spiked = calibration.best_range(np.append(values, np.float32(20)))
    assert 10 < (255 - spiked.zero) * spiked.scale < 19
    assert calibration.best_range(values + 50).zero == 0
    assert calibration.best_range(-values - 50).zero == 255
    assert calibration.best_range(np.zeros(5, np.float32)).zero == 0


# ---- which way is taken
def test_the_fastest_way_over_both_batches_wins_and_of_ways_alike_the_most_precise():
    times = {
        "early": {INT8: (1.0, 4.0), BFLOAT16: (1.5, 2.0), DIRECT_FLOAT: (9.0, 9.0)},
        "alike": {INT8: (1.0, 1.0), BFLOAT16: (1.01, 1.01), DIRECT_FLOAT: (1.1, 1.1)},
        "float": {WINOGRAD4_FLOAT: (1.0, 1.0), WINOGRAD2_FLOAT: (2.0, 2.0), DIRECT_FLOAT: (3.0, 3.0)},
    }
    assert tuning.fastest(times) == {"early": BFLOAT16, "alike": BFLOAT16, "float": WINOGRAD4_FLOAT}
    gentler = tuning.fastest({**times, "alone": {INT8: (1.0, 1.0)}}, without=[INT8, WINOGRAD4_FLOAT])
    assert gentler == {"early": BFLOAT16, "alike": BFLOAT16, "float": WINOGRAD2_FLOAT, "alone": INT8}


class Timed:
    """A denoiser that spends on each operation what its bytes cost, and ten times that in its first call."""

    shape, inputs = UNET.shape, ("x", "s", "label")

    def __init__(self, content):
        self.operations, self.calls = Reference(bytes(content)).operations, 0

    def take_profile(self):
        self.calls += 1
        costs = {Type.F32: 4.0, Type.BF16: 2.0, Type.S8: 1.0}
        return [
            (made["name"], "", "", costs[made["weights_type"]] * (10 if self.calls == 1 else 1), 1)
            for made in self.operations
        ]


def test_each_layer_is_timed_with_what_prepares_it(monkeypatch):
    monkeypatch.setattr(tuning.native, "network_denoiser", lambda content, **_: Timed(content))
    monkeypatch.setattr(tuning.LoopRunner, "run", lambda *_: None)
    times = tuning.measure(network(UNET), GUIDED, "bf16", {})
    assert times["film"] == {DIRECT_FLOAT: (4.0, 4.0)}, "nothing prepares a condition"
    assert times["down.0.conv1"][BFLOAT16] == (6.0, 6.0), "the norm's record says float32 weights"
    assert times["down.0.conv1"][DIRECT_FLOAT] == (8.0, 8.0)
    assert times["up.0.skip"] == {BFLOAT16: (6.0, 6.0), DIRECT_FLOAT: (4.0, 4.0)}


# ---- what is published
@pytest.fixture(scope="module")
def engine(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native") / "native.engine"
    export(tiny_checkpoint, folder, "native")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("spec", [GUIDED, Spec(POINTS)], ids=["unet", "mlp"])
def test_an_engine_is_proved_and_samples_as_its_checkpoint(spec, precision, tmp_path, rng):
    source = save(tmp_path / "checkpoint", spec, int(rng.integers(2**31)))
    manifest = export(source, tmp_path / "a.engine", "native", Order(precision=precision))
    assert manifest.requires == {}
    assert set(manifest.files) == {NETWORK, "proof.npy"}
    asked = {"steps": 4, "label": [0, 1, 2, 0], "seed": int(rng.integers(2**32))}
    came, expected = (load(path, threads=1).sample(4, **asked).states for path in (tmp_path / "a.engine", source))
    limit = {"fp32": 1e-5, "bf16": 3e-2, "int8": 0.1}[precision]
    assert error(came, expected) < limit, asked
    assert main(["verify", str(tmp_path / "a.engine")]) == 0


def test_a_damaged_network_is_refused_before_it_is_opened(engine, tmp_path, rng):
    copy = shutil.copytree(engine, tmp_path / "copy.engine")
    content = bytearray((copy / NETWORK).read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    for damaged, said in ((content, "was swapped"), (content[:-1], "its record says"), (b"", "its record says")):
        (copy / NETWORK).write_bytes(damaged)
        with pytest.raises(InvalidArtefact, match=rf"network\.bin .*{said}"):
            load(copy)


def test_the_network_is_mapped_and_run_where_it_lies(engine):
    runner, manifest, files = engines.open_engine(engine)
    assert isinstance(runner, LoopRunner)
    assert isinstance(files[NETWORK], mmap.mmap)
    assert isinstance(files[manifests.PROOF], bytes)
    case = certificate.cases(manifest.spec)[0]
    states = runner.run(certificate.request_of(case, manifest.spec, 0)).states
    del files
    np.testing.assert_array_equal(runner.run(certificate.request_of(case, manifest.spec, 0)).states, states)


@pytest.fixture
def proofs(monkeypatch):
    """The proofs that an export asks for, of which as many fail as `failing` says; F(4,3) is the fastest way."""
    measure, prove, asked = tuning.measure, certificate.prove, SimpleNamespace(count=0, failing=1)

    def proved(*arguments):
        asked.count += 1
        if asked.count <= asked.failing:
            raise certificate.ParityError(f"proof {asked.count}")
        return prove(*arguments)

    def measured(*arguments):
        times = measure(*arguments)
        return {layer: {way: (n, n) for n, way in enumerate(known, 1)} for layer, known in times.items()}

    monkeypatch.setattr(certificate, "prove", proved)
    monkeypatch.setattr(tuning, "measure", measured)
    return asked


def test_beyond_its_bound_an_engine_is_built_again_more_precisely(proofs, tiny_checkpoint, tmp_path, capsys):
    algorithms = {}
    for proofs.failing in (0, 1):
        proofs.count = 0
        export(tiny_checkpoint, tmp_path / "a.engine", "native")
        content = (tmp_path / "a.engine" / NETWORK).read_bytes()
        algorithms[proofs.failing] = {Algorithm(made["algorithm"]) for made in Reference(content).operations}
        assert proofs.count == 1 + proofs.failing
        assert ("built again, more precisely: proof 1" in capsys.readouterr().out) == bool(proofs.failing)
    assert algorithms[0] == {Algorithm.DIRECT, Algorithm.WINOGRAD2, Algorithm.WINOGRAD4}
    assert algorithms[1] == {Algorithm.DIRECT, Algorithm.WINOGRAD2}


def test_bfloat16_beyond_its_bound_is_built_again_in_smaller_tiles(proofs, tmp_path, rng):
    source = save(tmp_path / "checkpoint", Spec(NETWORKS["tiles of every size"]), int(rng.integers(2**31)))
    taken = []
    for proofs.failing in (0, 1, 2):
        proofs.count = 0
        export(source, tmp_path / "a.engine", "native", Order(precision="bf16"))
        operations = Reference((tmp_path / "a.engine" / NETWORK).read_bytes()).operations
        taken.append({Way(made["algorithm"], made["weights_type"]) for made in operations if made["weights_type"]})
    assert taken == [
        {WINOGRAD4_BFLOAT16, WINOGRAD2X4_BFLOAT16, BFLOAT16},
        {WINOGRAD2X4_BFLOAT16, BFLOAT16},
        {WINOGRAD2_BFLOAT16, BFLOAT16},
    ]


@pytest.mark.parametrize(("precision", "proof"), [("fp32", 2), ("bf16", 3), ("int8", 2)])
def test_what_stays_beyond_its_bound_is_not_published(proofs, precision, proof, tiny_checkpoint, tmp_path):
    proofs.failing = 9
    with pytest.raises(certificate.ParityError, match=rf"proof {proof}\. Nothing was published"):
        export(tiny_checkpoint, tmp_path / "a.engine", "native", Order(precision=precision))
    assert not list(tmp_path.iterdir())


def test_info_prints_the_operations(engine, tiny_engine, tiny_checkpoint, capsys):
    assert main(["info", str(engine), "--graph"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("down.0.conv1" in line and "convolve" in line for line in lines)
    for words, said in (
        ([str(tiny_engine)], "an engine of onnx; expected one exported --to native"),
        ([str(tiny_checkpoint)], "expected the folder of a native engine"),
        ([], "--graph came with None"),
    ):
        assert main(["info", *words, "--graph"]) == 2
        assert said in capsys.readouterr().err


# ---- what is refused
def changed(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("down.0.conv1", nn.Conv2d(8, 8, 3, padding=2, dilation=2), "1x1, or 3x3 of stride 1 or 2"),
        ("down.0.conv2", nn.Conv2d(8, 8, 5, padding=2), "1x1, or 3x3 of stride 1 or 2"),
        ("down.0.conv2", nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "a border of zeros"),
        ("down.1", nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), "no groups"),
        ("up.2", nn.ConvTranspose2d(16, 16, 3, padding=1), "expects Conv2d"),
        ("middle.0.norm1", nn.BatchNorm2d(16), "expects GroupNorm"),
        ("middle.0.attention", nn.MultiheadAttention(16, 2), "expects Attention"),
        ("middle.1", nn.Flatten(), "expects Block"),
        ("condition.project.1", nn.ReLU(), "expects SiLU"),
        ("film", nn.Bilinear(3, 3, 3), "expects Conv2d"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_what_the_engine_cannot_run_is_refused_by_name(name, module, said):
    with pytest.raises(InvalidInput, match=rf"^{name} is {type(module).__name__}.*{said}.*take --to onnx"):
        lower(changed(network(UNET), name, module), GUIDED, preferring(DIRECT_FLOAT, "fp32", UNET))


def test_other_networks_and_orders_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(InvalidInput, match=r"the network is Linear.* expects UNetNet or MLPNet there"):
        lower(nn.Linear(2, 2), GUIDED, preferring(DIRECT_FLOAT, "fp32", UNET))
    for order, said in (
        (Order("step"), "what is 'step'; .*expected denoiser"),
        (Order("sampler"), "what is 'sampler'"),
        (Order(precision="fp16"), "precision is 'fp16'; .*expected fp32 or bf16 or int8"),
        (Order(device="cuda"), "device is 'cuda'"),
    ):
        with pytest.raises(InvalidInput, match=said):
            export(tiny_checkpoint, tmp_path / "a.engine", "native", order)
    shallow = save(tmp_path / "shallow", Spec(replace(POINTS, depth=1)))
    for precision in ("bf16", "int8"):
        with pytest.raises(InvalidInput, match=f"'{precision}' and no layer of the network can be that; expected fp32"):
            export(shallow, tmp_path / "a.engine", "native", Order(precision=precision))
    assert [path.name for path in tmp_path.iterdir()] == ["shallow"]


def test_a_network_that_is_not_its_manifests_is_refused(engine):
    _, manifest, files = engines.open_engine(engine)
    with pytest.raises(InvalidInput, match="device is 'cuda'; a native engine runs on 'cpu'"):
        engines.runner(manifest, files, device="cuda")
    with pytest.raises(InvalidArtefact, match="the engine is a native step; expected a denoiser"):
        engines.runner(replace(manifest, what="step"), files)
    with pytest.raises(InvalidArtefact, match=r"the network takes .* its manifest says"):
        engines.runner(replace(manifest, inputs=("x", "s", "t")), files)
    with pytest.raises(InvalidArtefact, match="export it again"):
        engines.runner(manifest, {NETWORK: files[NETWORK][:1000]})
    with pytest.raises(InvalidArtefact, match=r"the engine lacks 'network\.bin'"):
        engines.runner(manifest, {})
