"""The certificate: which runs it compares, what it refuses, and that it can be repeated without torch."""

import io
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import POINTS, UNET, network

from pyflow import certificate, checkpoint, core, load, native
from pyflow.artefact import read_verified
from pyflow.certificate import Case, Expected, ParityError, cases, measure, request_of
from pyflow.engines import eager
from pyflow.engines import manifest as manifests
from pyflow.engines.manifest import BOUNDS, Bound, PlanRecord
from pyflow.engines.runner import LoopRunner, SamplerRunner, WholePlan
from pyflow.errors import InvalidArtefact
from pyflow.spec import MLP, Spec
from pyflow.verify import verify

SPEC = Spec(UNET, null_label=True)
FP32, LOW = BOUNDS["fp32"], BOUNDS["bf16"]


@pytest.fixture(scope="module")
def proved():
    """A model and what its reference says of every case."""
    model = network(UNET, 0)
    return model, Expected(SPEC, cases(SPEC), certificate.fresh_seed()).compute(model)


def runner_that(model, change) -> LoopRunner:
    """The eager network, its prediction changed."""
    inner = eager.runner(model, SPEC).denoiser
    assert inner.shape == UNET.shape

    def predict(x, s, t, label, out):
        with torch.inference_mode():
            prediction = model(*(torch.from_numpy(array.copy()) for array in (x, s, t, label))).numpy()
        out[...] = change(prediction, x, s, label)

    return LoopRunner(native.callable_denoiser(predict, UNET.shape))


# ---- which cases
@pytest.mark.parametrize(("spec", "labels"), [(SPEC, {0, 1, 2, 3}), (Spec(UNET), {0, 1, 2})])
def test_every_label_is_asked_for_and_the_null_label_where_it_is_known(spec, labels):
    for case in cases(spec):
        asked = set(request_of(case, spec, 1).label.tolist())
        assert asked <= (labels if case.guidance == 1.0 else labels - {3})
    assert set().union(*(request_of(case, spec, 1).label.tolist() for case in cases(spec))) == labels


def test_more_labels_than_pictures_are_all_asked_for():
    spec = Spec(MLP(classes=50), null_label=True)
    one_step = [case for case in cases(spec) if case.steps == 1 and case.guidance == 1.0]
    assert set().union(*(request_of(case, spec, 1).label.tolist() for case in one_step)) == set(range(51))


def test_the_masks_keep_something_and_repaint_something_in_some_seed():
    masks = [request_of(Case([], 1, 1.0, True), SPEC, seed).mask for seed in range(20)]
    assert all(set(np.unique(mask)) <= {0.0, 1.0} for mask in masks)
    assert 0 < np.mean(masks) < 1


# ---- what is refused
def test_the_network_itself_passes(proved):
    model, expected = proved
    made = measure(eager.runner(model, SPEC), SPEC, cases(SPEC), expected, FP32)
    assert made.worst < 1e-5
    assert made.cases == 40 + 12  # those of the own solver, and six solvers at two guidances
    assert measure(eager.runner(model, SPEC), SPEC, cases(SPEC), expected, LOW).psnr > 90


WRONG = {
    "off by a ten thousandth": lambda p, x, s, label: p * np.float32(1.0001),
    "NaN": lambda p, x, s, label: p * np.float32("nan"),
    "NaN in one value": lambda p, x, s, label: np.where(np.arange(p.size).reshape(p.shape) == 3, np.nan, p),
    "first picture for all": lambda p, x, s, label: np.broadcast_to(p[:1], p.shape),
    "time ignored": lambda p, x, s, label: p + (s[:, None, None, None] > 0.5) * np.float32(0.01),
    "one label wrong": lambda p, x, s, label: p + (label == 2)[:, None, None, None] * np.float32(0.01),
    "null label wrong": lambda p, x, s, label: p + (label == 3)[:, None, None, None] * np.float32(0.01),
    "large batches wrong": lambda p, x, s, label: p + np.float32(0.01 * (len(p) > 8)),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_network_is_refused(proved, change):
    model, expected = proved
    with pytest.raises(ParityError, match=r"batch \d+, \d+ rows, guidance .* relative error"):
        measure(runner_that(model, change), SPEC, cases(SPEC), expected, FP32)


class Euler(LoopRunner):
    """A step that knows its row by half: one that was traced with a=1, h=n=0 and with a guidance of 4."""

    def run(self, request):
        plan = [row._replace(a=1.0, h=0.0, n=0.0) for row in request.plan]
        guidance = request.guidance if request.guidance == 1.0 else 4.0
        return super().run(replace(request, plan=plan, guidance=guidance))


def test_a_step_that_knows_one_solver_alone_is_refused(proved):
    model, expected = proved
    with pytest.raises(ParityError, match="relative error"):
        measure(Euler(eager.runner(model, SPEC).denoiser), SPEC, cases(SPEC), expected, FP32)


def test_an_instant_velocity_counts_beside_an_average():
    """A network of two times that is right for s < t and wrong for s = t."""
    spec, model = Spec(POINTS), network(POINTS, 0)

    def predict(x, s, t, label, out):
        given = [torch.from_numpy(array.copy()) for array in (x, s, t, label)]
        with torch.inference_mode():
            out[...] = model(*given).numpy() * np.where(s == t, -1, 1)[:, None]

    expected = Expected(spec, cases(spec), 1).compute(model)
    with pytest.raises(ParityError):
        measure(LoopRunner(native.callable_denoiser(predict, (2,))), spec, cases(spec), expected, FP32)


def test_a_whole_sampler_is_asked_for_every_label():
    spec = Spec(MLP(classes=50), null_label=True)
    record = PlanRecord("sampler-1", "euler", (0.0, 1.0), 2.0)
    asked = [request_of(case, spec, 1).label.tolist() for case in cases(spec, [record])]
    assert set().union(*asked) == set(range(50))


def test_the_images_of_a_whole_sampler_are_compared_too(proved):
    """They are what is seen where the graph runs without pyflow."""
    model, _ = proved
    record = PlanRecord("sampler-1", "euler", (0.0, 1.0), 1.0)
    made = cases(SPEC, [record])
    expected = Expected(SPEC, made, 3).compute(model)

    def graph(given, black=False):
        states = core.sample(
            eager.denoise_function(model, SPEC, torch.from_numpy(given["label"])),
            made[0].plan,
            lambda row: torch.from_numpy(given["noise"]),
        ).numpy()
        return states, native.to_uint8(states) * (not black)

    def runner(graph):
        return SamplerRunner([WholePlan(made[0].plan, 1.0, graph)], UNET.shape)

    assert measure(runner(graph), SPEC, made, expected, FP32).worst < 1e-5
    with pytest.raises(ParityError, match=r"images are .* not what its states say"):
        measure(runner(partial(graph, black=True)), SPEC, made, expected, FP32)


def test_one_bad_picture_does_not_hide_among_good_ones(proved):
    model, expected = proved
    bad = runner_that(model, lambda p, *_: p + np.float32(0.4) * (np.arange(len(p)) == 5)[:, None, None, None])
    low = Bound(psnr=24.0)  # the batch alone would pass
    with pytest.raises(ParityError, match="PSNR"):
        measure(bad, SPEC, [cases(SPEC)[2 * 2 * 2]], expected, low)


def test_a_checkpoint_that_breaks_down_is_no_reference():
    model = network(UNET, 0)
    model.leave.bias.data.fill_(float("nan"))
    with pytest.raises(ParityError, match="the checkpoint itself makes a NaN"):
        Expected(SPEC, cases(SPEC)[:1], 0).compute(model)


@pytest.mark.parametrize("change", [WRONG["NaN"], WRONG["NaN in one value"], WRONG["first picture for all"]])
def test_a_low_precision_bound_refuses_what_is_not_rounding(proved, change):
    model, expected = proved
    with pytest.raises(ParityError, match=r"PSNR .* dB against float32; allowed: 40 dB or more"):
        measure(runner_that(model, change), SPEC, cases(SPEC), expected, LOW)


def test_a_low_precision_bound_lets_rounding_pass(proved):
    model, expected = proved
    rounded = runner_that(model, lambda p, *_: torch.from_numpy(p).bfloat16().float().numpy())
    made = measure(rounded, SPEC, cases(SPEC), expected, LOW)
    assert 40 < made.psnr < 90


# ---- the proof
def test_an_engine_is_verified_against_its_proof_and_against_its_checkpoint(tiny_engine, tiny_checkpoint):
    at_export = manifests.read(tiny_engine).certificate
    again = verify(tiny_engine, threads=1)
    assert (again.seed, again.cases) == (at_export.seed, at_export.cases)
    assert 0 < again.worst <= 1e-5
    fresh = verify(tiny_engine, tiny_checkpoint, threads=1)
    assert fresh.seed != at_export.seed
    assert 0 < fresh.worst <= 1e-5


def test_verifying_against_the_proof_needs_no_torch(tiny_engine):
    code = (
        "import sys; from pathlib import Path; from pyflow.verify import verify;"
        f"print(verify(Path({str(tiny_engine)!r})).worst); assert not {{'torch', 'onnx'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) <= 1e-5


def test_another_engines_proof_is_refused(tiny_engine):
    """The proof holds what the reference said, not what the engine says: a wrong engine does not fit it."""
    manifest = manifests.read(tiny_engine)
    record = manifest.files[manifests.PROOF]
    proof = read_verified(tiny_engine, manifests.PROOF, record.sha256, record.bytes)
    wrong = runner_that(network(UNET, 1), lambda p, *_: p)
    with pytest.raises(ParityError):
        certificate.repeat(wrong, manifest, proof)
    with pytest.raises(InvalidArtefact, match=r"proof is no \.npy file"):
        certificate.repeat(wrong, manifest, b"junk")
    with pytest.raises(InvalidArtefact, match=r"proof is float32 .* expected finite float32"):
        certificate.repeat(wrong, manifest, Expected(SPEC, cases(SPEC)[:1], 0).compute(network(UNET, 0)).proof())


def damaged_proofs(proof: bytes):
    yield "cut", proof[:-4]
    yield "long", proof + b"\0" * 4
    yield "empty", b""
    yield "a zip", b"PK\x03\x04" + proof
    yield "an archive", archive_of(np.zeros(3))
    yield "absurd", proof.replace(b"(97, ", b"(10**13, ")
    yield "NaN", proof[:-4] + np.float32("nan").tobytes()


def archive_of(array) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def test_a_damaged_proof_is_refused(proved, tiny_engine):
    model, expected = proved
    manifest = manifests.read(tiny_engine)
    for name, content in damaged_proofs(expected.proof()):
        print(name)
        with pytest.raises(InvalidArtefact, match="the engine's proof"):
            certificate.repeat(eager.runner(model, SPEC), manifest, content)


@pytest.mark.parametrize("classes", [10, 40])
@pytest.mark.parametrize("wrong", ["label", "null label", "row"])
def test_the_proof_holds_every_label_and_every_row_of_a_batch(classes, wrong):
    spec = Spec(MLP(width=16, depth=2, classes=classes), null_label=True)
    model = network(spec.network, 0)
    expected = Expected(spec, cases(spec), 7).compute(model)
    again = Expected(spec, cases(spec), 7).read_proof(expected.proof())

    def broken(prediction, x, s, label):
        off = {"label": label == classes - 1, "null label": label == classes, "row": np.arange(len(x)) == 9}[wrong]
        return prediction + np.float32(0.1) * off[:, None]

    def predict(x, s, t, label, out):
        given = [torch.from_numpy(array.copy()) for array in (x, s, t, label)]
        with torch.inference_mode():
            out[...] = broken(model(*given).numpy(), x, s, label)

    runner = LoopRunner(native.callable_denoiser(predict, spec.network.shape))
    assert measure(eager.runner(model, spec), spec, cases(spec), again, FP32).worst < 1e-5
    with pytest.raises(ParityError):
        measure(runner, spec, cases(spec), again, FP32)


def test_points_are_certified_too(rng):
    spec, model = Spec(POINTS), network(POINTS, int(rng.integers(2**31)))
    made, proof = certificate.prove(eager.runner(model, spec), model, spec, FP32)
    assert made.worst <= 1e-5
    assert made.off_by_one == 0
    assert len(proof) > 100


def test_a_fresh_networks_certificate_needs_weights_that_count(rng):
    """The fixtures' networks are no zeros: one step moves the state, so a wrong engine cannot hide."""
    net = network(UNET, int(rng.integers(2**31)))
    case = cases(SPEC)[0]
    states = certificate.reference(net, SPEC, request_of(case, SPEC, 3))
    start = native.normal(3, 0, case.batch, 64, 0).reshape(states.shape)
    assert np.abs(states - start).std() > 0.05


def test_a_loaded_engine_and_its_checkpoint_agree(tiny_engine, tiny_checkpoint):
    model, spec = checkpoint.load(tiny_checkpoint)
    expected = Expected(spec, cases(spec), certificate.fresh_seed()).compute(model)
    assert measure(load(tiny_engine, threads=1).runner, spec, cases(spec), expected, FP32).worst <= 1e-5
