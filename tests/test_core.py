"""The page of mathematics: paths, predictions, grids, rows, the step and the loop. Numerics: test_solvers.py."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import Gaussian

from pyflow import core
from pyflow.core import IMAGE, LINEAR, NOISE, PATHS, PREDICTIONS, VELOCITY, VP_LINEAR, Row, V
from pyflow.errors import InvalidInput, PyflowError

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
INSIDE = np.linspace(0.02, 0.98, 25)

# Rising times in 0..1 that end at 1, with gaps of at least 1/1000 so that no rounding error is divided by a tiny gap.
grids = st.sets(st.integers(0, 999), min_size=1, max_size=8).map(lambda kept: [*(k / 1000 for k in sorted(kept)), 1.0])


def pictures(seed: int, *shape: int, dtype=np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- paths
@every_path
def test_a_path_goes_from_noise_to_the_picture(path):
    assert path.alpha(1.0) == 1.0
    assert path.sigma(1.0) == 0.0
    # vp-linear ends at exp(-5.025) = 0.0066, like Ho et al.; the cosine a thousandth of a right angle short.
    assert 0.0 <= path.alpha(0.0) < 0.007
    assert path.sigma(0.0) == pytest.approx(1.0, abs=3e-5)
    assert np.all(np.diff(path.alpha(np.linspace(0, 1, 200))) > 0)
    assert np.all(np.diff(path.sigma(np.linspace(0, 1, 200))) < 0)


@every_path
def test_rates_are_derivatives(path):
    step = 1e-6  # central differences: truncation about step**2 * f''' ~ 1e-9, rounding about 1e-16 / step = 1e-10
    for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        slope = (value(INSIDE + step) - value(INSIDE - step)) / (2 * step)
        np.testing.assert_allclose(np.broadcast_to(rate(INSIDE), INSIDE.shape), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["vp-cosine", "vp-linear"])
def test_variance_is_preserved(name):
    t = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(PATHS[name].alpha(t) ** 2 + PATHS[name].sigma(t) ** 2, 1.0, rtol=0, atol=4e-16)


@every_path
def test_floats_arrays_and_tensors_agree(path):
    torch = pytest.importorskip("torch")
    for value in (path.alpha, path.sigma, path.alpha_rate, path.sigma_rate):
        floats = [value(float(t)) for t in INSIDE]
        assert all(type(v) is float for v in floats)
        for array in (value(INSIDE), value(torch.from_numpy(INSIDE))):
            np.testing.assert_allclose(np.broadcast_to(array, INSIDE.shape), floats, rtol=1e-13)
    single = torch.from_numpy(INSIDE).float()
    assert path.mix(single, single, single).dtype == torch.float32
    assert path.mix(INSIDE.astype(np.float32), INSIDE.astype(np.float32), 0.5).dtype == np.float32


def test_vp_linear_is_the_limit_of_the_thousand_betas():
    betas = np.linspace(1e-4, 0.02, 1000)
    discrete = np.sqrt(np.cumprod(1 - betas))
    continuous = VP_LINEAR.alpha(1 - np.arange(1, 1001) / 1000)
    # log alpha differs by the second order of log(1-beta), sum(beta**2)/4 = 0.034 at the noise end, where alpha is
    # 0.007, and by the trapezoid's end term k*(1000-k)/999/1000 * 0.00995 / 2 <= 0.00125 in the middle.
    assert np.max(np.abs(np.log(discrete / continuous))) < np.sum(betas**2) / 4 * 1.02 + 0.00125
    assert np.max(np.abs(discrete - continuous)) < 2e-3


# ---- predictions
@every_path
@every_prediction
def test_split_undoes_target(path, prediction):
    image, noise, t = pictures(1, 25), pictures(2, 25), INSIDE
    x, p = path.mix(image, noise, t), core.target(path, prediction, image, noise, t)
    c = core.split(path, prediction, t)
    np.testing.assert_allclose(c.image_x * x + c.image_p * p, image, rtol=0, atol=1e-12)
    np.testing.assert_allclose(c.noise_x * x + c.noise_p * p, noise, rtol=0, atol=1e-12)


@every_path
@every_prediction
def test_split_carries_expectations(path, prediction):
    # Every prediction is affine in image and noise, so what holds for a pair holds for conditional means.
    law, x = Gaussian(0.4, 0.7), pictures(3, 25)
    c, p = core.split(path, prediction, INSIDE), law.denoiser(path, prediction)(x, INSIDE, INSIDE, True)
    np.testing.assert_allclose(c.image_x * x + c.image_p * p, law.image(path, x, INSIDE), rtol=0, atol=1e-12)
    np.testing.assert_allclose(c.noise_x * x + c.noise_p * p, law.noise(path, x, INSIDE), rtol=0, atol=1e-12)


def test_target_says_what_its_name_says():
    image, noise = pictures(4, 5), pictures(5, 5)
    assert core.target(LINEAR, IMAGE, image, noise, 0.3) is image
    assert core.target(LINEAR, NOISE, image, noise, 0.3) is noise
    np.testing.assert_array_equal(core.target(LINEAR, VELOCITY, image, noise, 0.3), image - noise)
    np.testing.assert_array_equal(core.target(LINEAR, V, image, noise, 0.25), 0.25 * noise - 0.75 * image)


@every_path
def test_v_tells_the_picture_where_the_state_is_pure_noise(path):
    # On the way of the betas an error of the noise is 152 times as large in the picture; one of v is not enlarged.
    told = core.split(path, V, 0.0)
    assert abs(told.image_p) == pytest.approx(1.0, abs=1e-4)
    assert abs(core.split(VP_LINEAR, NOISE, 0.0).image_p) > 150


# ---- grids and refusals
@pytest.mark.parametrize("grid", core.GRIDS.values(), ids=core.GRIDS.keys())
@given(steps=st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_grids_rise_from_0_to_1(grid, steps):
    times = grid(steps)
    assert (len(times), times[0], times[-1]) == (steps + 1, 0.0, 1.0)
    assert all(s < t for s, t in zip(times, times[1:]))
    np.testing.assert_allclose(np.add(times, times[::-1]), 1.0, atol=1e-15)


REFUSED = {
    "falling": (lambda: core.euler(LINEAR, VELOCITY, [1.0, 0.0]), r"grid is \[1\.0, 0\.0\]; expected .* rising"),
    "repeated": (lambda: core.ddim(LINEAR, IMAGE, [0, 0.5, 0.5, 1]), r"0\.5, 0\.5.*; expected .* rising"),
    "one time": (lambda: core.heun(LINEAR, VELOCITY, [1.0]), r"grid is \[1\.0\]; expected two or more"),
    "ends early": (lambda: core.renoise(LINEAR, IMAGE, [0, 0.9]), r"0\.9\]; expected .* end at 1"),
    "negative": (lambda: core.ab2(LINEAR, VELOCITY, [-0.1, 1]), r"-0\.1.*; expected .* 0\.\.1"),
    "not a number": (lambda: core.euler(LINEAR, VELOCITY, [0, math.nan, 1]), r"nan.*; expected .* rising"),
    "no steps": (lambda: core.uniform_grid(0), r"steps is 0; expected 1 or more"),
    "no steps, cosine": (lambda: core.cosine_grid(-3), r"steps is -3; expected 1 or more"),
    "prediction": (lambda: core.ddim(LINEAR, "score", [0, 1]), r"prediction is 'score'; expected one of velocity, im"),
    "ab2 of images": (lambda: core.ab2(LINEAR, IMAGE, [0, 1]), r"prediction is 'image'; ab2 expected velocity.* heun"),
    "eta": (lambda: core.ddim(LINEAR, IMAGE, [0, 1], eta=1.5), r"eta is 1\.5; expected 0 .* to 1"),
    "no image in noise": (lambda: core.ddim(LINEAR, NOISE, [0, 1]), r"no image at t=0\.0 on the linear path; expected"),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_misuse_names_what_came_and_what_was_expected(call, sentence):
    with pytest.raises(InvalidInput, match=sentence) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PyflowError)


@given(grid=grids, eta=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_every_solver_makes_a_finite_plan_that_ends_at_the_picture(grid, eta):
    plans = [solver(path, VELOCITY, grid) for solver in core.SOLVERS.values() for path in PATHS.values()]
    for plan in [*plans, core.ddim(LINEAR, IMAGE, grid, eta), core.ddim(VP_LINEAR, NOISE, grid, eta)]:
        assert all(type(value) in (float, int) and math.isfinite(value) for row in plan for value in row)
        assert all(row.s <= row.t and row.n >= 0.0 for row in plan)
        assert (plan[0].s, plan[-1].ka, plan[-1].ks, plan[-1].n) == (grid[0], 1.0, 0.0, 0.0)
        assert plan[0].h == 0.0  # there is no prediction before the first


@given(kept=st.floats(1e-6, 1 - 1e-6))
@example(kept=0.0020773792997543783)
@example(kept=0.006874482114006097)
@settings(max_examples=50, deadline=None)
def test_ancestral_rows_survive_rounding(kept):
    # From t=0 on the linear path all noise is fresh; sigma*sigma - sigma**2 is below zero at the examples.
    first = core.ddpm(LINEAR, VELOCITY, [0.0, kept, 1.0])[0]
    assert first.n == pytest.approx(1 - kept, rel=1e-12)


# ---- fused_step
def operands(dtype=np.float32) -> dict:
    names = ("x", "cond", "uncond", "previous", "noise", "image", "noise0")
    arrays = {name: pictures(10 + i, 3, 4, 5, dtype=dtype) for i, name in enumerate(names)}
    return arrays | {"mask": np.random.default_rng(9).random((3, 4, 5)).astype(dtype)}


FULL = Row(s=0.25, t=0.5, a=0.9, b=-0.3, h=0.2, n=0.4, ka=0.6, ks=0.7)


def test_fused_step_is_its_formula():
    o = operands(np.float64)
    y, p = core.fused_step(FULL, guidance=2.5, **o)
    guided = o["uncond"] + 2.5 * (o["cond"] - o["uncond"])
    update = 0.9 * o["x"] - 0.3 * guided + 0.2 * o["previous"] + 0.4 * o["noise"]
    known = 0.6 * o["image"] + 0.7 * o["noise0"]
    np.testing.assert_array_equal(p, guided)
    np.testing.assert_allclose(y, o["mask"] * update + (1 - o["mask"]) * known, rtol=1e-14, atol=1e-15)


def test_fused_step_rounds_in_the_order_it_promises():
    # Every product and every sum on its own, left to right, in float32: what the C++ and Triton twins repeat.
    o, one = operands(), np.float32(1)
    a, b, h, n, ka, ks = np.float32(FULL[2:])
    p = o["uncond"] + np.float32(2.3) * (o["cond"] - o["uncond"])
    y = ((a * o["x"] + b * p) + h * o["previous"]) + n * o["noise"]
    y = o["mask"] * y + (one - o["mask"]) * (ka * o["image"] + ks * o["noise0"])
    got = core.fused_step(FULL, guidance=2.3, **o)
    assert (got[0].tobytes(), got[1].tobytes()) == (y.tobytes(), p.tobytes())


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize(
    ("letter", "name"), [("a", "x"), ("h", "previous"), ("n", "noise"), ("ka", "image"), ("ks", "noise0")]
)
def test_an_operand_with_a_zero_coefficient_is_never_read(letter, name, missing):
    row, o = FULL._replace(**{letter: 0.0}), operands()
    absent = None if missing is None else np.full_like(o["x"], missing)
    expected = core.fused_step(row, guidance=1.5, **(o | {name: np.zeros_like(o["x"])}))[0]
    np.testing.assert_array_equal(core.fused_step(row, guidance=1.5, **(o | {name: absent}))[0], expected)


def test_without_uncond_the_prediction_is_cond_itself():
    o = operands()
    del o["uncond"]
    assert core.fused_step(FULL, guidance=7.0, **o)[1] is o["cond"]


finite = st.floats(-4, 4, width=32)


@given(
    coefficients=st.tuples(finite, finite, finite, finite, finite, finite).filter(lambda c: c[0] and c[4]),
    guidance=finite,
    guided=st.booleans(),
    masked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_numpy_and_torch_agree_to_the_bit(coefficients, guidance, guided, masked):
    torch = pytest.importorskip("torch")
    row, o = Row(0.0, 1.0, *coefficients), operands()
    dropped = ({"uncond"} if not guided else set()) | ({"mask"} if not masked else set())
    arrays = {name: array for name, array in o.items() if name not in dropped}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for array, tensor in zip(
        core.fused_step(row, guidance=guidance, **arrays), core.fused_step(row, guidance=guidance, **tensors)
    ):
        assert array.dtype == np.float32
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(array, tensor.numpy())


# ---- sample
class Recorder:
    """A network and a noise source that remember what they were asked and what they answered."""

    def __init__(self, shape=(2, 6)):
        self.calls, self.asked, self.shape, self.told = [], [], shape, []

    def denoise(self, x, s, t, labelled):
        self.calls.append((s, t, labelled))
        self.told.append(np.tanh(x * (1.5 if labelled else 0.5)) + s)
        return self.told[-1]

    def noise(self, k):
        self.asked.append(k)
        return pictures(100 + k, *self.shape)


def test_guidance_1_calls_once_a_row_and_other_values_twice():
    plan = core.ab2(LINEAR, VELOCITY, core.uniform_grid(3))
    one, two = Recorder(), Recorder()
    core.sample(one.denoise, plan, one.noise)
    core.sample(two.denoise, plan, two.noise, guidance=3.0)
    assert one.calls == [(row.s, row.t, True) for row in plan]
    assert two.calls == [(row.s, row.t, labelled) for row in plan for labelled in (True, False)]
    zero = Recorder()
    core.sample(zero.denoise, plan, zero.noise, guidance=0.0)
    assert len(zero.calls) == 6


@given(grid=grids, solver=st.sampled_from(sorted(core.SOLVERS)))
@settings(max_examples=40, deadline=None)
def test_noise_is_asked_for_only_by_rows_that_use_it(grid, solver):
    plan, net = core.SOLVERS[solver](LINEAR, VELOCITY, grid), Recorder()
    core.sample(net.denoise, plan, net.noise)
    assert net.asked == [0, *(k for k, row in enumerate(plan, start=1) if row.n != 0.0)]
    stochastic = solver in ("ddpm", "renoise")
    assert len(net.asked) == (len(grid) - 1 if stochastic else 1)


def test_the_prediction_before_is_the_guided_one():
    net, plan, g = Recorder(), core.ab2(LINEAR, VELOCITY, [0.0, 0.3, 1.0]), 2.0
    end = core.sample(net.denoise, plan, net.noise, guidance=g)
    first, second = (uncond + g * (cond - uncond) for cond, uncond in zip(net.told[0::2], net.told[1::2]))
    x1 = plan[0].a * pictures(100, 2, 6) + plan[0].b * first
    np.testing.assert_allclose(end, plan[1].a * x1 + plan[1].b * second + plan[1].h * first, rtol=1e-14)


@every_path
@pytest.mark.parametrize("solver", core.SOLVERS.values(), ids=core.SOLVERS.keys())
def test_kept_pixels_follow_the_path_and_end_as_the_image(path, solver):
    mask = np.zeros((2, 6), np.float32)
    mask[:, :3] = 1.0
    image, net, seen = pictures(7, 2, 6, dtype=np.float32), Recorder(), []
    noise = lambda k: net.noise(k).astype(np.float32)  # noqa: E731
    grid = (0.0, 0.2, 0.7, 1.0)
    plan = solver(path, VELOCITY, grid)

    def denoise(x, s, t, labelled):
        seen.append((s, x))
        return net.denoise(x, s, t, labelled)

    out = core.sample(denoise, plan, noise, mask=mask, image=image)
    assert out.dtype == np.float32
    assert out[:, 3:].tobytes() == image[:, 3:].tobytes()
    for s, x in seen[1:]:  # the state that each later row meets lies on the kept picture's own path
        np.testing.assert_allclose(x[:, 3:], path.mix(image, noise(0), s)[:, 3:], rtol=0, atol=1e-6)
    free = Recorder()
    alone = core.sample(free.denoise, plan, lambda k: free.noise(k).astype(np.float32))
    np.testing.assert_array_equal(out[:, :3], alone[:, :3])  # this network looks at one pixel at a time
