"""The public face: what a caller gets, and that every wrong value is named before native code sees it."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import UNET, flow_of

import pyflow
from pyflow import checkpoint, core, native
from pyflow.certificate import reference
from pyflow.engines.runner import LoopRunner, Request
from pyflow.errors import InvalidInput, PyflowError
from pyflow.sampler import BATCH_LIMIT, STEPS_LIMIT, Flow
from pyflow.spec import MLP, Spec

SOLVERS = [name for name in core.SOLVERS if name != "ab2"]


@pytest.fixture(scope="module")
def engine(tiny_engine) -> Flow:
    return pyflow.load(tiny_engine, threads=1)


@pytest.fixture(scope="module")
def original(tiny_checkpoint) -> Flow:
    return pyflow.load(tiny_checkpoint)


@pytest.fixture(params=["engine", "original"])
def flow(request) -> Flow:
    return request.getfixturevalue(request.param)


@pytest.fixture
def seed(rng) -> int:
    return int(rng.integers(2**32))


# ---- the picture
def test_a_picture_is_the_same_alone_and_in_a_batch(flow, seed):
    """To the bit in the engine; torch's sums shift a little with the batch."""
    for guidance in (1.0, 3.0):
        setting = {"steps": 3, "guidance": guidance, "seed": seed}
        labels = [i % 3 for i in range(8)]
        together = flow.sample(8, label=labels, **setting).states
        for i in (0, 3, 7):
            alone = flow.sample(1, label=labels[i], first=i, **setting).states
            if flow.backend == "onnx":
                np.testing.assert_array_equal(alone[0], together[i], err_msg=f"seed {seed}")
            else:
                np.testing.assert_allclose(alone[0], together[i], atol=2e-5 * guidance)
        halves = [flow.sample(4, label=labels[a : a + 4], first=a, **setting).states for a in (0, 4)]
        np.testing.assert_allclose(np.concatenate(halves), together, atol=2e-5 * guidance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_engine_checkpoint_and_reference_make_the_same_picture(engine, original, tiny_checkpoint, solver, seed):
    setting = {"steps": 3, "solver": solver, "seed": seed, "label": [0, 1, 2], "guidance": 2.0}
    pictures = [flow.sample(3, **setting).states for flow in (engine, original)]
    model, spec = checkpoint.load(tiny_checkpoint)
    expected = reference(model, spec, Request(engine.plan(3, solver), 3, seed, 0, 2.0, np.arange(3), 3))
    for came in pictures:
        np.testing.assert_allclose(came, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=f"seed {seed}")


@pytest.mark.parametrize("solver", core.SOLVERS)
@pytest.mark.parametrize("grid", [*core.GRIDS, (0.0, 0.3, 0.35, 1.0)])
def test_every_solver_runs_on_the_engine(engine, solver, grid, seed):
    rows = 3 + (3 if solver == "heun" else 0)
    output = engine.sample(2, steps=3, solver=solver, grid=grid, label=0, seed=seed)
    assert output.states.shape == (2, 1, 8, 8)
    assert np.isfinite(output.states).all()
    assert output.row_seconds.shape == output.denoiser_seconds.shape == (rows,)
    assert (output.row_seconds >= output.denoiser_seconds).all()
    assert (output.denoiser_seconds > 0).all()


@pytest.mark.parametrize("path", core.PATHS)
@pytest.mark.parametrize("prediction", core.PREDICTIONS)
def test_every_path_and_prediction_samples(path, prediction, seed):
    flow = flow_of(Spec(UNET, path, prediction, solver="ddim"))
    if (path, prediction) == ("linear", "noise"):
        with pytest.raises(InvalidInput, match="noise tells no image at t=0"):
            flow.sample(2, steps=4, label=1)
    grid = (0.001, 0.2, 0.6, 1.0) if (path, prediction) == ("linear", "noise") else "uniform"
    output = flow.sample(2, grid=grid, label=1, seed=seed)
    assert np.isfinite(output.states).all()


def test_seed_label_guidance_and_steps_all_count(engine):
    base = {"steps": 2, "label": 1, "guidance": 2.0, "seed": 1}
    first = engine.sample(2, **base).states
    np.testing.assert_array_equal(engine.sample(2, **base).states, first)
    for change in (
        {"seed": 2},
        {"label": 2},
        {"guidance": 3.0},
        {"steps": 3},
        {"first": 1},
        {"grid": "cosine", "steps": 3},
    ):
        assert not np.array_equal(engine.sample(2, **{**base, **change}).states, first), change
    assert not np.array_equal(first[0], first[1])


def test_the_defaults_are_one_step_no_label_no_guidance_seed_nought(engine):
    default = engine.sample().states
    np.testing.assert_array_equal(default, engine.sample(1, steps=1, guidance=1.0, seed=0, first=0).states)
    assert len(engine.plan()) == 1


def test_no_guidance_makes_one_call_and_guidance_makes_one_of_twice_the_batch(seed):
    spec, asked = Spec(UNET, null_label=True), []

    def predict(x, s, t, label, out):
        asked.append((len(x), label.tolist()))
        out[:] = 0

    flow = Flow(LoopRunner(native.callable_denoiser(predict, UNET.shape)), spec, "test", "none")
    flow.sample(2, steps=2, label=[2, 1])
    flow.sample(2, steps=1, label=[2, 1], guidance=2.0)
    flow.sample(2, steps=1)
    assert asked == [(2, [2, 1])] * 2 + [(4, [2, 1, 3, 3])] + [(2, [3, 3])]


def test_the_names_of_diffusers_mean_the_same(engine, seed):
    own = engine.sample(2, steps=3, guidance=2.0, seed=seed, label=1)
    theirs = {"num_inference_steps": 3, "guidance_scale": 2.0, "label": 1}
    for generator in (seed, torch.Generator().manual_seed(seed)):
        came = engine.sample(2, generator=generator, **theirs)
        np.testing.assert_array_equal(came.states, own.states)
        pictures = engine.sample(2, generator=generator, output_type="np", **theirs)
        np.testing.assert_array_equal(pictures, own.images / np.float32(255))


def test_numbers_may_be_numpys(engine, seed):
    own = engine.sample(2, steps=2, guidance=2.0, seed=seed, label=[1, 2]).states
    for label in (np.array([1, 2]), np.array([1, 2], np.uint8), (1, 2), [np.int32(1), np.int64(2)]):
        came = engine.sample(
            np.int64(2), steps=np.int32(2), guidance=np.float32(2), seed=np.uint32(seed), first=np.int8(0), label=label
        )
        np.testing.assert_array_equal(came.states, own)
    np.testing.assert_array_equal(engine.sample(2, steps=2, guidance=2, seed=seed, label=[1, 2]).states, own)


def test_output_types(engine, seed):
    output = engine.sample(3, label=0, seed=seed)
    assert output.images.shape == (3, 8, 8, 1)
    assert output.images.dtype == np.uint8
    floats = engine.sample(3, label=0, seed=seed, output_type="np")
    assert (floats.dtype, floats.shape) == (np.float32, (3, 8, 8, 1))
    np.testing.assert_array_equal(np.rint(floats * 255), output.images)
    np.testing.assert_array_equal(engine.sample(3, label=0, seed=seed, output_type="latent"), output.states)
    pil = engine.sample(3, label=0, seed=seed, output_type="pil")
    assert [(image.mode, image.size) for image in pil] == [("L", (8, 8))] * 3
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in pil]), output.images[..., 0])
    tensor = engine.sample(3, label=0, seed=seed, output_type="pt")
    assert (tensor.shape, tensor.dtype) == ((3, 1, 8, 8), torch.float32)
    np.testing.assert_array_equal((tensor * 255).round().byte().numpy()[:, 0], output.images[..., 0])


# ---- what is wrong is named, before native code
BAD = {
    "batch 0": ({"batch": 0}, "batch is 0; expected 1 to 65536"),
    "batch -1": ({"batch": -1}, "batch is -1; expected 1"),
    "batch 1.5": ({"batch": 1.5}, "batch is 1.5; expected an integer"),
    "batch text": ({"batch": "4"}, "batch is '4'; expected an integer"),
    "batch none": ({"batch": None}, "batch is None; expected an integer"),
    "batch huge": ({"batch": BATCH_LIMIT + 1}, "batch is 65537; expected 1 to 65536"),
    "steps 0": ({"steps": 0}, "steps is 0; expected 1 to 10000"),
    "steps -1": ({"steps": -1}, "steps is -1; expected 1"),
    "steps 1.5": ({"steps": 1.5}, "steps is 1.5; expected an integer"),
    "steps huge": ({"steps": STEPS_LIMIT + 1}, "steps is 10001; expected 1 to 10000"),
    "steps astronomic": ({"steps": 10**30}, "steps is 1000000000000000000000000000000; expected"),
    "alias of steps": ({"num_inference_steps": 0}, "steps is 0; expected 1"),
    "seed negative": ({"seed": -1}, "seed is -1; expected 0 to 4294967295"),
    "seed 2**32": ({"seed": 2**32}, "seed is 4294967296; expected 0 to 4294967295"),
    "seed float": ({"seed": 1.0}, "seed is 1.0; expected an integer"),
    "seed text": ({"seed": "a"}, "seed is 'a'; expected an integer"),
    "generator": ({"generator": "a"}, "generator is a str; expected a torch.Generator or a seed"),
    "generators": ({"generator": [1, 2]}, "generator is a list; expected a torch.Generator or a seed"),
    "generator negative": ({"generator": -1}, "seed is -1; expected 0"),
    "first negative": ({"first": -1}, "first is -1; expected 0"),
    "first too far": ({"first": 2**32 - 1, "batch": 2}, "first is 4294967295; expected 0 to 4294967294"),
    "first float": ({"first": 0.0}, "first is 0.0; expected an integer"),
    "guidance NaN": ({"guidance": float("nan")}, "guidance is nan; expected a number from 0 to 100"),
    "guidance inf": ({"guidance": float("inf")}, "guidance is inf; expected a number from 0 to 100"),
    "guidance negative": ({"guidance": -0.1}, "guidance is -0.1; expected a number from 0 to 100"),
    "guidance text": ({"guidance": "2"}, "guidance is '2'; expected a number"),
    "guidance huge": ({"guidance": 1e30}, "guidance is 1e[+]30; expected a number from 0 to 100"),
    "guidance list": ({"guidance": [2.0]}, r"guidance is \[2.0\]; expected a number"),
    "guidance without label": ({"guidance": 2.0, "label": None}, "guidance is 2.0 and label is None"),
    "label too large": ({"label": 3}, "label is 3; expected 0 to 2, this network has 3 classes"),
    "label huge": ({"label": 2**70}, "label is 1180591620717411303424; expected"),
    "label negative": ({"label": -1}, "label is -1; expected 0 to 2"),
    "label float": ({"label": 1.0}, "label is 1.0; expected one integer"),
    "label bool": ({"label": True}, "label is True; expected one integer"),
    "label text": ({"label": "1"}, "label is '1'; expected one integer"),
    "labels too few": ({"label": [0, 1], "batch": 3}, r"label is \[0, 1\]; expected one integer, or 3 of them"),
    "labels too many": ({"label": [0, 1, 2], "batch": 1}, r"label is \[0, 1, 2\]; expected one integer, or 1 of them"),
    "one label too large": ({"label": [0, 9], "batch": 2}, "label is 9; expected 0 to 2"),
    "one label negative": ({"label": [0, -4], "batch": 2}, "label is -4; expected 0 to 2"),
    "one label none": ({"label": [0, None], "batch": 2}, r"label is \[0, None\]; expected one integer"),
    "labels nested": ({"label": [[0, 1]], "batch": 2}, "expected one integer, or 2 of them"),
    "labels ragged": ({"label": [[0], [1, 2]], "batch": 2}, "expected one integer, or 2 of them"),
    "no labels": ({"label": [], "batch": 1}, r"label is \[\]; expected one integer"),
    "solver": ({"solver": "rk45"}, "solver is 'rk45'; expected one of euler, heun"),
    "solver number": ({"solver": 4}, "solver is 4; expected one of euler"),
    "grid": ({"grid": "log"}, "grid is 'log'; expected one of uniform, cosine"),
    "grid falls": ({"grid": [0, 0.6, 0.5, 1]}, "the grid is .*; expected two or more rising times"),
    "grid from 1 to 0": ({"grid": [1.0, 0.5, 0.0]}, "the grid is .*; expected two or more rising times"),
    "grid stands": ({"grid": [0, 0.5, 0.5, 1]}, "the grid is .*; expected two or more rising times"),
    "grid ends early": ({"grid": [0, 0.9]}, "the grid is .*; expected .* end at 1"),
    "grid past the end": ({"grid": [0, 2]}, "the grid is .*; expected .* end at 1"),
    "grid below 0": ({"grid": [-1, 1]}, "the grid is .*; expected"),
    "grid of one": ({"grid": [1]}, "the grid is .*; expected two or more"),
    "grid empty": ({"grid": []}, "the grid is .*; expected two or more"),
    "grid NaN": ({"grid": [0, float("nan"), 1]}, "the grid is .*; expected two or more rising"),
    "grid text": ({"grid": ["a", "b"]}, r"grid is \['a', 'b'\]; expected"),
    "grid none": ({"grid": None}, "grid is None; expected"),
    "grid number": ({"grid": 5}, "grid is 5; expected"),
    "grid too long": ({"grid": np.linspace(0, 1, STEPS_LIMIT + 2)}, "grid has 10002 times.*; expected 10000 at most"),
    "grid and steps": ({"grid": [0, 0.5, 1], "steps": 3}, "grid has 3 times, so 2 steps; expected steps=3"),
    "both steps": ({"steps": 2, "num_inference_steps": 2}, "both steps and num_inference_steps are given"),
    "both guidances": ({"guidance": 2.0, "guidance_scale": 2.0}, "both guidance and guidance_scale are given"),
    "both seeds": ({"seed": 2, "generator": 2}, "both seed and generator are given"),
    "both callbacks": ({"callback": print, "callback_on_step_end": print}, "both callback and callback_on_step_end"),
    "callback": ({"callback": 5}, "callback is a int; expected something to call"),
    "callback of diffusers": (
        {"callback_on_step_end": "a"},
        "callback_on_step_end is a str; expected something to call",
    ),
    "output type": ({"output_type": "jpeg"}, "output_type is 'jpeg'; expected one of np, pil, pt, latent"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_wrong_value_is_named_before_native_code(engine, no_native, arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence) as caught:
        engine.sample(**{"batch": 1, "label": 0, **arguments})
    assert isinstance(caught.value, ValueError)


def test_a_network_without_classes_takes_no_label(no_native):
    flow = flow_of(Spec(replace(UNET, classes=0)))
    with pytest.raises(InvalidInput, match="label is 0; this network knows no classes, expected None"):
        flow.sample(label=0)
    with pytest.raises(InvalidInput, match=r"guidance is 2\.0; expected 1"):
        flow.sample(guidance=2.0)


def test_a_student_takes_no_guidance_and_needs_a_label(no_native):
    flow = flow_of(Spec(UNET, null_label=False))
    with pytest.raises(InvalidInput, match=r"guidance is 4\.0; expected 1: .*student has its teacher's guidance"):
        flow.sample(label=0, guidance=4.0)
    with pytest.raises(InvalidInput, match="label is None; this network was only trained with labels, expected 0 to 2"):
        flow.sample()


def test_points_are_no_pictures(seed):
    flow = flow_of(Spec(MLP(shape=(2,), width=8)))
    output = flow.sample(5, seed=seed)
    assert output.states.shape == (5, 2)
    with pytest.raises(InvalidInput, match=r"points, not pictures; read \.states"):
        _ = output.images
    with pytest.raises(InvalidInput, match="this network makes points, expected None"):
        flow.sample(5, output_type="np")
    with pytest.raises(InvalidInput, match="inpainting needs one that makes pictures"):
        flow.inpaint(np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool))


def test_a_solver_that_needs_another_prediction_says_so(no_native):
    with pytest.raises(InvalidInput, match="prediction is 'image'; ab2 expected velocity"):
        flow_of(Spec(UNET, "vp-cosine", "image")).sample(label=0, solver="ab2")


def test_a_network_that_breaks_down_is_an_error(seed):
    """NaN is an answer of no picture: the caller hears of it, whatever the output type."""

    def predict(x, s, t, label, out):
        out[:] = np.nan

    flow = Flow(LoopRunner(native.callable_denoiser(predict, UNET.shape)), Spec(UNET), "test", "none")
    with pytest.raises(PyflowError, match="NaN or an infinity"):
        _ = flow.sample(2, label=0, seed=seed).images


# ---- plans
def test_a_plan_is_made_once_for_the_same_times(engine, original):
    plan = engine.plan(3)
    assert engine.plan(3) is plan
    assert engine.plan(3, "euler", grid=[0, 1 / 3, 2 / 3, 1.0]) is plan
    for other in (engine.plan(2), engine.plan(3, "heun"), engine.plan(3, grid="cosine"), engine.plan(3, resamples=2)):
        assert other != plan
    assert original.plan(3) == plan
    assert original.plan(3) is not plan


def test_a_solver_that_takes_over_a_name_has_its_own_plans(engine, monkeypatch):
    before = engine.sample(steps=2, label=1).states
    monkeypatch.setitem(core.SOLVERS, "euler", lambda *given: [*core.renoise(*given)])  # a list will do
    assert engine.plan(2, "euler") == core.renoise(core.LINEAR, core.VELOCITY, core.uniform_grid(2))
    assert not np.array_equal(engine.sample(steps=2, label=1, solver="euler").states, before)


# ---- callbacks
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_callback_comes_after_every_row(engine, solver):
    plan, rows, steps = engine.plan(4, solver), [], []
    engine.sample(2, steps=4, solver=solver, label=0, callback=rows.append)
    engine.sample(2, steps=4, solver=solver, label=0, callback_on_step_end=lambda *a: steps.append(a))
    assert rows == list(range(len(plan)))
    assert [step[1] for step in steps] == rows
    assert [step[2] for step in steps] == [row.s for row in plan]
    assert all(step[0] is engine and step[3] == {} for step in steps)


@pytest.mark.parametrize("raised", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("name", ["callback", "callback_on_step_end"])
def test_what_a_callback_raises_ends_the_run_and_reaches_the_caller(engine, raised, name):
    seen = []

    def callback(*arguments):
        seen.append(arguments)
        if len(seen) == 2:
            raise raised

    with pytest.raises(type(raised)) as caught:
        engine.sample(2, steps=5, label=0, **{name: callback})
    assert caught.value is raised
    assert len(seen) == 2
    assert np.isfinite(engine.sample(2, steps=5, label=0).states).all()  # and the flow goes on working


def test_a_callback_does_not_change_the_picture(engine, seed):
    plain = engine.sample(2, steps=3, label=0, seed=seed).states
    np.testing.assert_array_equal(engine.sample(2, steps=3, label=0, seed=seed, callback=lambda k: 7).states, plain)


# ---- threads
def test_four_threads_on_one_flow_make_what_one_makes(flow, seed):
    settings = [
        {"batch": 1 + i % 3, "steps": 1 + i % 4, "guidance": 1.0 + i % 2, "label": i % 3, "seed": (seed + i) % 2**32}
        for i in range(16)
    ]
    expected = [flow.sample(**setting).states for setting in settings]
    came: list = [None] * len(settings)
    start = threading.Barrier(4)

    def work(own):
        start.wait()
        for i in range(own, len(settings), 4):
            came[i] = flow.sample(**settings[i]).states

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(came, expected):
        np.testing.assert_array_equal(one, other, err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", ["steps 0", "guidance NaN", "label too large", "seed negative", "both steps"])
def test_inpaint_checks_what_sample_checks(engine, no_native, name):
    arguments, sentence = BAD[name]
    with pytest.raises(InvalidInput, match=sentence):
        engine.inpaint(np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool), **{"label": 0, **arguments})
