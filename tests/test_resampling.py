"""Resampling jumps: rows of the plan that keep every marginal, the same on every machine, and do what they are for."""

import itertools
import math

import numpy as np
import pytest
from oracles import Gaussian
from tiny import UNET, flow_of

from pyflow import core, native
from pyflow.core import IMAGE, PATHS, VELOCITY, Row
from pyflow.errors import InvalidInput
from pyflow.resampling import SOLVERS, jumped, resampled
from pyflow.spec import Spec

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def plan_of(path, solver: str, steps: int, resamples: int, jump: int, prediction: str = VELOCITY) -> core.Plan:
    grid = core.uniform_grid(steps)
    return resampled(path, core.SOLVERS[solver](path, prediction, grid), grid, resamples, jump)


# ---- which rows
@pytest.mark.parametrize(
    ("steps", "resamples", "jump", "visited"),
    [
        (2, 2, 1, [0, 1, 1]),
        (4, 2, 1, [0, 1, 1, 2, 2, 3, 3]),
        (4, 3, 1, [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        (5, 2, 2, [0, 1, 2, 1, 2, 3, 4, 3, 4]),
        (6, 3, 2, [0, 1, 2, 3, 2, 3, 2, 3, 4, 5, 4, 5, 4, 5]),
        (4, 2, 3, [0, 1, 2, 3, 1, 2, 3]),
        (3, 1, 1, [0, 1, 2]),
    ],
)
def test_each_stretch_but_the_first_is_passed_again(steps, resamples, jump, visited):
    """The interval that each row starts at; the state always lies where the next row begins."""
    for path, solver in itertools.product(PATHS.values(), SOLVERS):
        plan = plan_of(path, solver, steps, resamples, jump)
        assert [round(row.s * steps) for row in plan] == visited
        for row, following in zip(plan, [*plan[1:], None]):
            reached = following.s if following else 1.0
            assert (row.ka, row.ks) == (path.alpha(reached), path.sigma(reached))


def test_without_resampling_the_plan_is_what_it_was():
    for path, solver, jump in itertools.product(PATHS.values(), SOLVERS, (1, 2, 4)):
        assert plan_of(path, solver, 5, 1, jump) == core.SOLVERS[solver](path, VELOCITY, core.uniform_grid(5))


# ---- what a jump does
@every_path
def test_a_jump_is_a_row_and_then_fresh_noise(path, rng):
    """Two samples of the same law, whatever the row: its own noise and the jump's are drawn apart in one of them."""
    r, t = sorted(rng.uniform(0.05, 0.95, 2))
    a, b, n = rng.uniform(-1, 1, 3)
    row = Row(0.0, 1.0, a, b, 0.0, n, float(path.alpha(t)), float(path.sigma(t)))
    x, p = rng.standard_normal(2)
    z, fresh, once = rng.standard_normal((3, 400_000))
    y = row.a * x + row.b * p + row.n * z
    scale = path.alpha(r) / path.alpha(t)
    expected = scale * y + math.sqrt(path.sigma(r) ** 2 - (scale * path.sigma(t)) ** 2) * fresh
    new = jumped(path, row, t, r)
    found = new.a * x + new.b * p + new.n * once
    assert found.mean() == pytest.approx(expected.mean(), abs=5 * expected.std() / 600)
    assert found.std() == pytest.approx(expected.std(), rel=0.01)


@every_path
def test_a_jump_from_a_state_of_the_law_is_a_state_of_the_law(path, rng):
    """In closed form: x_t of image and noise becomes x_r of the same image."""
    r, t = sorted(rng.uniform(0.02, 1, 2))
    kept = Row(t, t, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    row = jumped(path, kept, t, r)
    assert row.a * path.alpha(t) == pytest.approx(path.alpha(r))
    assert math.hypot(row.a * path.sigma(t), row.n) == pytest.approx(path.sigma(r))
    assert (row.ka, row.ks) == (path.alpha(r), path.sigma(r))
    assert row[:2] == kept[:2]


@every_path
@pytest.mark.parametrize(("steps", "resamples", "jump"), [(2, 2, 1), (4, 3, 1), (9, 2, 4)])
def test_every_marginal_stays_exact(path, steps, resamples, jump, rng):
    """With an exact flow map, and with an exact consistency function, each state has the mean and variance of x_t.

    Both networks are affine in the state, so mean and variance go through each row in closed form.
    """
    law = Gaussian(rng.uniform(-2, 2), rng.uniform(0.2, 2))
    exact = {
        "euler": (VELOCITY, lambda x, s, t: law.average_velocity(path, x, s, t)),
        "renoise": (IMAGE, lambda x, s, t: law.flow(path, x, s, 1.0)),
    }
    for solver, (prediction, says) in exact.items():
        plan = plan_of(path, solver, steps, resamples, jump, prediction)
        assert len(plan) > steps
        mean, variance = path.alpha(0.0) * law.mean, law.variance_at(path, 0.0)
        for row, reached in zip(plan, [*(row.s for row in plan[1:]), 1.0]):
            offset = says(0.0, row.s, row.t)
            slope = says(1.0, row.s, row.t) - offset
            mean = (row.a + row.b * slope) * mean + row.b * offset
            variance = (row.a + row.b * slope) ** 2 * variance + row.n**2
            assert mean == pytest.approx(path.alpha(reached) * law.mean, abs=1e-9), (solver, reached)
            assert variance == pytest.approx(law.variance_at(path, reached), rel=1e-9), (solver, reached)


RHO, DEVIATION, KEPT = 0.9, 0.5, 0.6


def of_two_pixels(path):
    """The exact network of pictures of two pixels that go together, told the state alone."""
    covariance = DEVIATION**2 * np.array([[1, RHO], [RHO, 1]])

    def denoise(x, s, t, labelled):
        alpha, sigma = path.alpha(s), path.sigma(s)
        image = x @ (alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(2))).T
        return path.alpha_rate(s) * image + path.sigma_rate(s) * (x - alpha * image) / sigma

    return denoise


@every_path
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_generated_comes_to_fit_what_is_kept(path, solver, rng):
    """One pixel is kept; the law of the other, given it, is known. What is hidden under the mask is never read."""
    told, expected = [], RHO * KEPT
    for resamples in (1, 2, 10):
        plan = plan_of(path, solver, 20, resamples, 1)
        known = {"image": np.array([KEPT, rng.uniform(-9, 9)]), "mask": np.array([0.0, 1.0])}
        made = core.sample(of_two_pixels(path), plan, lambda k: rng.standard_normal((8000, 2)), **known)
        assert (made[:, 0] == KEPT).all()
        told.append(made[:, 1].mean())
    assert told[0] < told[1] < told[2] < expected + 0.02, told
    assert expected - told[2] < 0.45 * (expected - told[0]), told


# ---- the same everywhere
SHAPE, BATCH = (3, 4, 6), 3


def network(x, s, t, label):
    """Products and sums only, which NumPy and the loop round alike."""
    s, t = (np.asarray(time, np.float32).reshape(-1, 1, 1, 1) for time in (s, t))
    return (np.float32(0.3) - s * np.float32(0.5)) * x + (t - s) * np.float32(0.7)


def fill(x, s, t, label, out):
    out[...] = network(x, s, t, label)


def drawn(rng) -> tuple[int, dict]:
    mask = rng.integers(2, size=(BATCH, 1, *SHAPE[1:])).astype(np.float32)
    return int(rng.integers(2**32)), {"mask": mask, "image": rng.standard_normal((BATCH, *SHAPE), np.float32)}


def by_core(plan, seed: int, **known) -> np.ndarray:
    def noise(k):
        return native.normal(seed, 0, BATCH, math.prod(SHAPE), k).reshape(BATCH, *SHAPE)

    return core.sample(lambda x, s, t, labelled: network(x, s, t, 0), plan, noise, **known)


@every_path
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_loop_in_cpp_makes_cores_bits(path, solver, rng):
    denoiser, (seed, known) = native.callable_denoiser(fill, SHAPE), drawn(rng)
    plan = plan_of(path, solver, 5, 3, 2)
    got = native.sample(denoiser, plan, batch=BATCH, seed=seed, **known).states
    expected = by_core(plan, seed, **known)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32), err_msg=f"seed {seed}")
    kept = np.broadcast_to(known["mask"] == 0, got.shape)
    np.testing.assert_array_equal(got[kept], known["image"][kept])


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_rows_go_through_the_triton_step(solver, rng, kernel_device):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from pyflow import kernels

    seed, known = drawn(rng)
    plan = plan_of(PATHS["vp-cosine"], solver, 3, 2, 1)
    given = {name: torch.from_numpy(np.broadcast_to(value, (BATCH, *SHAPE)).copy()) for name, value in known.items()}
    given = {name: value.to(kernel_device) for name, value in given.items()}

    def noise(k):
        return torch.from_numpy(native.normal(seed, 0, BATCH, math.prod(SHAPE), k).reshape(BATCH, *SHAPE))

    x = noise0 = noise(0).to(kernel_device)
    for k, row in enumerate(plan, start=1):
        p = torch.from_numpy(network(x.cpu().numpy(), row.s, row.t, 0)).to(kernel_device)
        fresh = noise(k).to(kernel_device) if row.n else None
        x, _ = kernels.fused_step(row, x=x, cond=p, noise=fresh, noise0=noise0, **given)
    expected = by_core(plan, seed, **known)
    np.testing.assert_array_equal(x.cpu().numpy().view(np.uint32), expected.view(np.uint32), err_msg=f"seed {seed}")


# ---- the public face
@pytest.mark.parametrize("solver", SOLVERS)
def test_inpaint_runs_the_resampled_plan_and_keeps_what_is_kept(solver, rng):
    flow = flow_of(Spec(UNET, "vp-cosine", solver="ddim"))
    image, white = rng.integers(256, size=(8, 8), dtype=np.uint8), rng.random((8, 8)) < 0.5
    output = flow.inpaint(image, white, steps=5, label=1, solver=solver, resamples=3, jump=2)
    assert len(output.row_seconds) == len(flow.plan(5, solver, resamples=3, jump=2)) == 13
    np.testing.assert_array_equal(output.images[0, ..., 0][~white], image[~white])


def test_resampling_is_off_unless_asked_for(rng):
    flow = flow_of(Spec(UNET))
    image, white = rng.integers(256, size=(8, 8), dtype=np.uint8), rng.random((8, 8)) < 0.5
    once = flow.inpaint(image, white, steps=3, label=0)
    assert len(once.row_seconds) == 3
    np.testing.assert_array_equal(flow.inpaint(image, white, steps=3, label=0, resamples=1, jump=9).states, once.states)


BAD = {
    "heun": (
        {"solver": "heun", "resamples": 2},
        "solver 'heun', whose rows build .* one of euler, ddim, ddpm, renoise",
    ),
    "ab2": ({"solver": "ab2", "resamples": 2}, "solver 'ab2'"),
    "one step": ({"steps": 1, "resamples": 2}, "jump is 1 of 1 steps; .* expected more than 1 steps, or resamples=1"),
    "a long jump": ({"steps": 4, "resamples": 2, "jump": 4}, "jump is 4 of 4 steps"),
    "a jump back, passed once": ({"steps": 4, "jump": -3}, "jump is -3; expected 1 to"),
    "no jump": ({"steps": 4, "resamples": 2, "jump": 0}, "jump is 0; expected 1 to"),
    "no passes": ({"resamples": 0}, "resamples is 0; expected 1 to"),
    "half a pass": ({"resamples": 1.5}, "resamples is 1.5; expected an integer"),
    "too many": ({"steps": 100, "resamples": 101}, "steps times resamples is 10100; expected 1 to 10000"),
}


@pytest.mark.parametrize(("asked", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_resampled_is_refused(no_native, asked, sentence):
    flow = flow_of(Spec(UNET))
    with pytest.raises(InvalidInput, match=sentence):
        flow.inpaint(np.zeros((8, 8), np.uint8), np.ones((8, 8), bool), label=0, **asked)
