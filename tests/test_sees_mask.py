"""Networks that see the mask: every backend tells them the kept picture and the mask, and a wrong one is noticed."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
from tiny import UNET, flow_of, network, save  # noqa: E402 - after the skip

from pyflow import certificate, core, engines, load, masks, native  # noqa: E402
from pyflow.certificate import Expected, ParityError, cases, measure  # noqa: E402
from pyflow.engines import compiled, eager  # noqa: E402
from pyflow.engines import manifest as manifests  # noqa: E402
from pyflow.engines.manifest import BOUNDS  # noqa: E402
from pyflow.engines.runner import LoopRunner, Request, Runner, told_of  # noqa: E402
from pyflow.errors import InvalidArtefact, InvalidInput  # noqa: E402
from pyflow.export import aoti, export  # noqa: E402
from pyflow.export.build import Order  # noqa: E402
from pyflow.export.lowering import lower  # noqa: E402
from pyflow.export.shapes import Denoiser  # noqa: E402
from pyflow.export.ways import WAYS, preferring  # noqa: E402
from pyflow.spec import MLP, Spec  # noqa: E402
from pyflow.verify import verify  # noqa: E402

SHAPE = (2, 8, 8)  # two channels: with one, an order of channels may hide
SPEC = Spec(replace(UNET, shape=SHAPE, extra=3), null_label=True)
MODEL = network(SPEC.network, seed=4)
RUNNERS = sys.modules["pyflow.engines.runner"]  # engines.runner is a function
PLANS = {name: SPEC.plan(core.uniform_grid(2), name) for name in ("euler", "heun", "renoise")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sees") / "checkpoint", SPEC, seed=4)


@pytest.fixture(scope="module")
def engine(checkpoint):
    export(checkpoint, checkpoint.with_name("sees.engine"))
    return checkpoint.with_name("sees.engine")


def request_of(rng, batch: int = 3, *, guidance: float = 1.0, masked: bool = True, plan: str = "heun") -> Request:
    """A mask and a picture of its own for each."""
    known = {}
    if masked:
        known["mask"] = masks.draw("mixed", *SHAPE[1:], batch, seed=int(rng.integers(2**32)))
        known["image"] = rng.uniform(-1, 1, (batch, *SHAPE)).astype(np.float32)
    seed, first = (int(number) for number in rng.integers(2**31, size=2))
    label = rng.integers(0, UNET.classes, batch)
    return Request(PLANS[plan], batch, seed, first, guidance, label, UNET.classes, **known)


def truth(request: Request) -> np.ndarray:
    """core.sample around the module, told in a formula of its own."""
    batch, null = request.batch, torch.full((request.batch,), UNET.classes)
    mask, image = np.ones((batch, 1, *SHAPE[1:]), np.float32), np.zeros((batch, *SHAPE), np.float32)
    known = {}
    if request.mask is not None:
        mask, image = request.mask, request.image
        known = {"mask": torch.from_numpy(mask), "image": torch.from_numpy(image)}
    kept = np.where(mask == 1, np.float32(0), image)

    @torch.inference_mode()
    def denoise(x, s, t, labelled):
        given = torch.cat([x, torch.from_numpy(kept), torch.from_numpy(mask)], 1)
        times = (torch.full((batch,), time) for time in (s, t))
        return MODEL(given, *times, torch.from_numpy(request.label) if labelled else null)

    def noise(row):
        drawn = native.normal(request.seed, request.first, batch, int(np.prod(SHAPE)), row)
        return torch.from_numpy(drawn).reshape(batch, *SHAPE)

    return core.sample(denoise, request.plan, noise, guidance=request.guidance, **known).numpy()


def error(came: np.ndarray, request: Request) -> float:
    expected = truth(request)
    assert came.shape == expected.shape
    assert np.isfinite(expected).all()
    return float(np.abs(came - expected).max() / np.abs(expected).max() / max(1.0, request.guidance))


# ---- who runs them
def runner_of(to: str, files: dict[str, bytes]) -> Runner:
    """Of an engine that was never proved or published."""
    inputs = Denoiser.inputs_of(SPEC)
    return engines.runner(manifests.Manifest(to, "denoiser", "fp32", SPEC, inputs, "", {}, {}, {}, None), files, 1)


def native_runner(precision: str, threads: int = 1) -> Runner:
    graph = lower(MODEL, SPEC, preferring(WAYS[precision][0], precision, SPEC.network))
    return LoopRunner(native.network_denoiser(graph.to_bytes(), threads))


def openvino_runner(engine: Path) -> Runner:
    """Of the ONNX engine's graph, which an OpenVINO engine has too."""
    pytest.importorskip("openvino")
    return runner_of("openvino", {"denoiser.onnx": (engine / "denoiser.onnx").read_bytes()})


MAKERS: dict[str, Callable[[Path], Runner]] = {
    "onnx": lambda engine: load(engine, threads=1).runner,
    "eager": lambda _: eager.runner(MODEL, SPEC),
    "native": lambda _: native_runner("fp32"),
    "native bf16": lambda _: native_runner("bf16"),
    "native, two threads": lambda _: native_runner("fp32", 2),
    "openvino": openvino_runner,
    "aoti": lambda _: runner_of("aoti", aoti.build(MODEL, SPEC, Order()).files),
    "compile": lambda _: compiled.runner(MODEL, SPEC),
}
SLOW = {"aoti", "compile"}
BACKENDS = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MAKERS]
BOUND = {"native bf16": 5e-2}


@pytest.fixture(scope="module")
def runners(engine) -> Callable[[str], Runner]:
    """By their names, each made once."""
    return cache(lambda name: MAKERS[name](engine))


# ---- parity
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_tells_the_network_what_the_reference_tells_it(runners, name, rng):
    """Batch after batch over the same denoiser: other masks, none, guided and not."""
    run, bound = runners(name).run, BOUND.get(name, 1e-5)
    for batch in (1, 3, 7):
        for guidance in (1.0, 2.5):
            for masked in (True, False, True):
                request = request_of(rng, batch, guidance=guidance, masked=masked, plan=str(rng.choice(list(PLANS))))
                assert error(run(request).states, request) <= bound, (batch, guidance, masked)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_call_was_told_is_not_seen_by_another(runners, name, rng):
    """Callers at once and in turn, each with its own mask, on one denoiser."""
    run, bound = runners(name).run, BOUND.get(name, 1e-5)
    asked = [request_of(rng, batch, masked=masked, plan="euler") for batch in (2, 3) for masked in (True, False, True)]
    with ThreadPoolExecutor(3) as pool:
        came = list(pool.map(lambda request: run(request).states, asked * 2))
    assert max(error(states, request) for states, request in zip(came, asked * 2)) <= bound


def test_one_mask_and_picture_serve_a_batch(runners, rng):
    request = request_of(rng, 4, guidance=2.0)
    one = replace(request, mask=request.mask[0], image=request.image[0])
    all_of_them = {name: np.repeat(getattr(request, name)[:1], 4, axis=0) for name in ("mask", "image")}
    assert error(runners("onnx").run(one).states, replace(request, **all_of_them)) <= 1e-5


def test_the_mask_is_heard(runners, rng):
    """Of the same noise, with other pixels to keep, the network says something else where all is generated."""
    request = request_of(rng, 3, plan="euler")
    other = replace(request, image=-request.image)
    hole = np.broadcast_to(request.mask, request.image.shape) == 1
    one, two = (runners("onnx").run(asked).states[hole] for asked in (request, other))
    assert np.abs(one - two).max() > 0.01 * np.abs(one).max()


# ---- the loop
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_loop_joins_what_is_told_behind_the_state(guidance, rng):
    """Bit for bit in every call, twice where it is guided; nothing of it was left unwritten."""
    shape, extra, batch, seen = (3, 5, 4), 2, 3, []
    told = rng.standard_normal((batch, extra, *shape[1:])).astype(np.float32)
    start = rng.standard_normal((batch, *shape)).astype(np.float32)

    def predict(x, s, t, label, out):
        assert x.shape == (len(s), 5, 5, 4)
        assert out.shape == (len(s), *shape)
        seen.append(x.copy())
        out[...] = x[:, :3] * np.float32(0.5)

    def plain(x, s, t, label, out):
        out[...] = x * np.float32(0.5)

    asked = {"batch": batch, "guidance": guidance, "label": 1, "noise0": start}
    came = native.sample(native.callable_denoiser(predict, shape, extra), PLANS["heun"], **asked, told=told)
    expected = native.sample(native.callable_denoiser(plain, shape), PLANS["heun"], **asked)
    np.testing.assert_array_equal(came.states, expected.states)
    calls = 1 if guidance == 1.0 else 2
    assert len(seen) == len(PLANS["heun"])
    for x in seen:
        np.testing.assert_array_equal(x[:, 3:], np.concatenate([told] * calls))
    np.testing.assert_array_equal(seen[0][:, :3], np.concatenate([start] * calls))


def test_points_are_told_too(rng):
    told = rng.standard_normal((4, 3)).astype(np.float32)

    def predict(x, s, t, label, out):
        out[...] = x[:, 2:4] - x[:, :2] + x[:, 4:]

    row = core.Row(0.0, 1.0, a=1.0, b=1.0, h=0.0, n=0.0, ka=0.0, ks=0.0)
    came = native.sample(native.callable_denoiser(predict, (2,), 3), [row], batch=4, told=told).states
    np.testing.assert_allclose(came, told[:, :2] + told[:, 2:], atol=1e-6)


# ---- planted bugs
def swapped(request, shape):
    """The mask first."""
    return np.roll(told_of(request, shape), 1, axis=1)


def reversed_picture(request, shape):
    told = told_of(request, shape)
    return np.concatenate([told[:, -2::-1], told[:, -1:]], axis=1)


def inverted(request, shape):
    told = told_of(request, shape)
    return np.concatenate([told[:, :-1], 1 - told[:, -1:]], axis=1)


def unmasked(request, shape):
    """The hole's pixels too."""
    if request.image is None:
        return told_of(request, shape)
    image = np.broadcast_to(request.image, (request.batch, *shape))
    return np.concatenate([image, told_of(request, shape)[:, -1:]], axis=1)


def nothing(request, shape):
    return np.zeros_like(told_of(request, shape))


def the_first_for_all(request, shape):
    told = told_of(request, shape)
    return np.repeat(told[:1], len(told), axis=0)


def never_a_mask(request, shape):
    return told_of(replace(request, mask=None, image=None), shape)


class Stale:
    """What the first call of a batch was told, for ever."""

    def __init__(self) -> None:
        self.kept: dict[int, np.ndarray] = {}

    def __call__(self, request, shape):
        return self.kept.setdefault(request.batch, told_of(request, shape))


BUGS = {
    made.__name__: lambda made=made: made
    for made in (swapped, reversed_picture, inverted, unmasked, nothing, the_first_for_all, never_a_mask)
} | {"stale": Stale}


@pytest.fixture(scope="module")
def proved():
    return Expected(SPEC, cases(SPEC), certificate.fresh_seed()).compute(MODEL)


def test_the_certificate_tells_the_network_all_sorts(proved):
    """A mask and a picture of each picture's own, whatever the batch, and for every solver."""
    made = cases(SPEC)
    plans = [case.plan for case in made if case.masked]
    assert all(SPEC.plan(core.uniform_grid(3), name) in plans for name in ("euler", "heun", "ab2", "ddim"))
    asked = [certificate.request_of(case, SPEC, proved.seed) for case in made if case.masked]
    assert sum(case.masked for case in made) >= len(made) / 2
    largest = max(asked, key=lambda request: request.batch)
    for request in asked:
        np.testing.assert_array_equal(request.mask, largest.mask[: request.batch])
        np.testing.assert_array_equal(request.image, largest.image[: request.batch])
    told = told_of(largest, SHAPE)
    assert len({picture.tobytes() for picture in told}) == len(told)
    assert all(0 < np.mean(told[:, channel] != 0) < 1 for channel in range(len(told[0])))
    assert measure(eager.runner(MODEL, SPEC), SPEC, made, proved, BOUNDS["fp32"]).worst < 1e-5


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_refused_by_the_certificate(proved, monkeypatch, bug):
    monkeypatch.setattr(RUNNERS, "told_of", BUGS[bug]())
    with pytest.raises(ParityError, match="relative error"):
        measure(eager.runner(MODEL, SPEC), SPEC, cases(SPEC), proved, BOUNDS["fp32"])


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed_by_these_tests(runners, monkeypatch, bug, rng):
    run = runners("native").run
    monkeypatch.setattr(RUNNERS, "told_of", BUGS[bug]())
    asked = [request_of(rng, 3) for _ in range(2)]
    assert max(error(run(request).states, request) for request in asked) > 1e-3


# ---- the public face
def test_kept_pixels_come_back_to_the_bit(engine, checkpoint, rng):
    image = rng.integers(256, size=(8, 8, 2), dtype=np.uint8)
    white = masks.draw("irregular", 8, 8, 1, seed=int(rng.integers(2**32)))[0, 0] == 1
    asked = {"batch": 3, "label": [0, 1, 2], "guidance": 2.0, "seed": int(rng.integers(2**32))}
    for source in (engine, checkpoint):
        flow = load(source)
        for steps in (1, 3):
            for made in flow.inpaint(image, white, steps=steps, **asked).images:
                np.testing.assert_array_equal(made[~white], image[~white])
        everything = flow.inpaint(image, np.ones((8, 8), bool), steps=2, solver=flow.spec.solver, **asked)
        np.testing.assert_array_equal(everything.states, flow.sample(asked.pop("batch"), steps=2, **asked).states)
        asked["batch"] = 3


def test_an_engine_is_verified_by_its_proof(engine):
    assert verify(engine).cases == manifests.read(engine).proved.cases


# ---- refusals
def test_what_is_not_told_rightly_is_refused(rng, monkeypatch):
    monkeypatch.setattr(native._C, "sample", lambda *_: pytest.fail("native code was called"))
    sees = native.callable_denoiser(print, SHAPE, 3)
    blind = native.callable_denoiser(print, SHAPE)
    told = np.zeros((2, 3, 8, 8), np.float32)
    wrong = {
        "told is None; expected (2, 3, 8, 8): this network is told 3 channels more": (sees, None),
        "told has shape (2, 2, 8, 8); expected one that broadcasts to (2, 3, 8, 8)": (sees, told[:, :2]),
        "told is dtype float64; expected a NumPy array of float32": (sees, told.astype(np.float64)),
        "told is a list; expected a NumPy array of float32": (sees, told.tolist()),
        "told holds a NaN or an infinity": (sees, np.full_like(told, np.nan)),
        "told is a ndarray; expected None: this network is told the state alone": (blind, told),
    }
    for sentence, (denoiser, given) in wrong.items():
        with pytest.raises(InvalidInput) as caught:
            native.sample(denoiser, PLANS["euler"], batch=2, told=given)
        assert str(caught.value).startswith(sentence)
    for extra, sentence in ((-1, "extra is -1; expected 0 to"), (2**31, "extra is 2147483648"), (1.5, "extra is 1.5")):
        with pytest.raises(InvalidInput, match=sentence):
            native.callable_denoiser(print, SHAPE, extra)


def test_a_mask_that_cannot_be_told_is_refused(rng):
    request = request_of(rng, 2)
    uneven = np.repeat(request.mask, 2, axis=1)
    uneven[0, 0, 0, 0] = 1 - uneven[0, 0, 0, 0]
    flow = flow_of(SPEC)
    with pytest.raises(InvalidInput, match=r"mask differs between the channels of a pixel; .* told one for all"):
        flow.runner.run(replace(request, mask=uneven))
    with pytest.raises(InvalidInput, match="mask is given and image is None; this network is told the kept picture"):
        flow.runner.run(replace(request, image=None))
    with pytest.raises(InvalidInput, match="image holds a NaN"):
        flow.runner.run(replace(request, image=np.full_like(request.image, np.nan)))


@pytest.mark.parametrize("what", ["step", "sampler"])
def test_a_step_or_a_sampler_of_it_is_refused(checkpoint, tmp_path, what):
    with pytest.raises(InvalidInput, match=f"what is '{what}' and the network sees the mask; expected denoiser"):
        export(checkpoint, tmp_path / "a.engine", order=Order(what=what))
    assert not list(tmp_path.iterdir())


def test_other_channels_than_its_manifests_are_refused(engine):
    manifest, files = manifests.read(engine), {"denoiser.onnx": (engine / "denoiser.onnx").read_bytes()}
    for other in (replace(SPEC.network, extra=0), replace(SPEC.network, extra=4)):
        with pytest.raises(InvalidArtefact, match=r"is told 3 channels more; its manifest says .* and [04]: export it"):
            engines.runner(replace(manifest, spec=replace(SPEC, network=other)), files)


def test_a_model_may_not_make_more_channels_than_it_is_given():
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    given, made = (helper.make_tensor_value_info(name, floats, ["n", c, 4, 4]) for name, c in (("x", 2), ("y", 4)))
    graph = helper.make_graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], "g", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    with pytest.raises(InvalidArtefact, match=r"first output 'y' is \(\?, 4, 4, 4\) .* or with fewer channels"):
        native.onnx_denoiser(model.SerializeToString())


def test_a_network_that_sees_no_mask_is_told_nothing(rng):
    assert not MLP().sees_mask
    flow = flow_of(Spec(UNET, null_label=True))
    assert flow.runner.denoiser.extra == 0
    assert flow.inpaint(np.zeros((8, 8), np.uint8), np.ones((8, 8), bool), label=1).images.shape == (1, 8, 8, 1)
