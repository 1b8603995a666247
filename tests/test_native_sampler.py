"""The C++ loop against core.sample, with Python callables: the same bits, and errors and Ctrl-C that arrive."""

import gc
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyflow import core, native, noise
from pyflow.core import Row
from pyflow.errors import InvalidInput

SHAPE, BATCH, LABEL, NULL = (3, 5, 7), 4, 2, 9


@pytest.fixture
def rng():
    entropy = np.random.SeedSequence().entropy
    print(f"np.random.default_rng({entropy})")  # pytest shows it when the test fails
    return np.random.default_rng(entropy)


def network(x, s, t, label):
    """A prediction from products and sums only, so that NumPy rounds it alike for every batch."""
    f32, column = np.float32, (-1, 1, 1, 1)
    s, t, label = (values.astype(f32).reshape(column) for values in (s, t, label))
    return (f32(0.3) - s * f32(0.5)) * x + (t - s) * f32(0.7) + label * f32(0.01)


def fill(x, s, t, label, out):
    out[...] = network(x, s, t, label)


def by_core(plan, *, seed, first=0, guidance=1.0, label=LABEL, noise0=None, **known):
    def denoise(x, s, t, labelled):
        times = (np.full(len(x), time, np.float32) for time in (s, t))
        return network(x, *times, np.full(len(x), label if labelled else NULL))

    def draw(k):
        if k == 0 and noise0 is not None:
            return noise0
        return native.normal(seed, first, BATCH, int(np.prod(SHAPE)), k).reshape(BATCH, *SHAPE)

    return core.sample(denoise, plan, draw, guidance=guidance, **known)


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype == np.float32
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def plans():
    found = []
    for (name, solver), path, prediction in itertools.product(
        core.SOLVERS.items(), core.PATHS.values(), core.PREDICTIONS
    ):
        for steps in (1, 2, 5):
            try:
                plan = solver(path, prediction, core.uniform_grid(steps))
            except InvalidInput:  # core tells which solver, path and prediction do not go together
                continue
            found.append(pytest.param(plan, id=f"{name}-{path.name}-{prediction}-{steps}"))
    return found


@pytest.fixture(scope="module")
def denoiser():
    return native.callable_denoiser(fill, SHAPE)


@pytest.mark.parametrize("plan", plans())
def test_every_solver_gives_cores_bits(plan, denoiser, rng):
    seed, first = (int(value) for value in rng.integers(0, 2**31, 2))
    image = rng.standard_normal(SHAPE).astype(np.float32)
    mask = np.clip(rng.uniform(-1, 2, (BATCH, 1, *SHAPE[1:])), 0, 1).astype(np.float32)
    start = rng.standard_normal((BATCH, *SHAPE)).astype(np.float32)
    for guidance, known in itertools.product(
        (1.0, 2.5, 0.0), ({}, {"mask": mask, "image": image}, {"mask": mask, "image": image, "noise0": start})
    ):
        common = {"seed": seed, "first": first, "guidance": guidance, "label": LABEL, **known}
        got = native.sample(denoiser, plan, batch=BATCH, null_label=NULL, **common)
        assert_same_bits(got.states, by_core(plan, **common))
        assert got.row_seconds.shape == got.denoiser_seconds.shape == (len(plan),)
        assert (got.row_seconds >= got.denoiser_seconds).all()
        assert (got.denoiser_seconds > 0).all()


def test_the_loop_draws_the_reference_noise(denoiser):
    keep = [Row(0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)]
    got = native.sample(denoiser, keep, batch=BATCH, seed=3, first=8).states
    expected = noise.normal(3, 8, BATCH, int(np.prod(SHAPE)), 0).reshape(got.shape)
    np.testing.assert_array_max_ulp(got, expected, maxulp=2)


PLAN = core.ddpm(core.VP_COSINE, core.NOISE, core.uniform_grid(4))


def test_a_picture_does_not_depend_on_its_batch(denoiser):
    together = native.sample(denoiser, PLAN, batch=8, guidance=3.0, label=list(range(8))).states
    for i in range(8):
        alone = native.sample(denoiser, PLAN, batch=1, first=i, guidance=3.0, label=i).states
        assert_same_bits(alone[0], together[i])


def test_one_label_a_picture_equals_one_for_all(denoiser):
    one = native.sample(denoiser, PLAN, batch=BATCH, label=LABEL).states
    assert_same_bits(native.sample(denoiser, PLAN, batch=BATCH, label=np.full(BATCH, LABEL)).states, one)


def test_no_label_means_the_null_label_everywhere():
    seen = []
    denoiser = native.callable_denoiser(lambda x, s, t, label, out: seen.append(label.tolist()), SHAPE)
    native.sample(denoiser, PLAN[:1], batch=2, null_label=NULL)
    native.sample(denoiser, PLAN[:1], batch=2, null_label=NULL, label=[3, 4], guidance=2.0)
    assert seen == [[NULL, NULL], [3, 4, NULL, NULL]]


def test_threads_share_one_denoiser(denoiser):
    def run(seed):
        return native.sample(denoiser, PLAN, batch=BATCH, seed=seed, guidance=1.5, label=LABEL).states

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(24)))
    for seed, got in enumerate(together):
        assert_same_bits(got, run(seed))


def test_a_callable_that_fills_nothing_shows_as_nan():
    denoiser = native.callable_denoiser(lambda x, s, t, label, out: None, SHAPE)
    assert np.isnan(native.sample(denoiser, PLAN, batch=1).states).all()


def test_views_are_typed_read_only_and_outlive_the_run():
    kept = []

    def keep(x, s, t, label, out):
        kept.append((x, s, t, label, out))
        fill(x, s, t, label, out)

    native.sample(native.callable_denoiser(keep, SHAPE), PLAN[:2], batch=2)
    gc.collect()
    x, s, t, label, out = kept[0]
    assert [view.dtype for view in kept[0]] == [np.float32, np.float32, np.float32, np.int64, np.float32]
    assert (x.shape, s.shape, t.shape, label.shape, out.shape) == ((2, *SHAPE), (2,), (2,), (2,), (2, *SHAPE))
    assert [view.flags.writeable for view in kept[0]] == [False, False, False, False, True]
    assert np.isfinite(x).all()
    assert np.isfinite(out).all()


# ---- plans
def test_the_table_of_a_plan_is_made_once_and_is_its_rows(denoiser):
    plan = core.Plan(PLAN)
    expected = native.sample(denoiser, [*plan], batch=2).states
    assert plan.table is None, "a list has no place for it"
    assert_same_bits(native.sample(denoiser, plan, batch=2).states, expected)
    table = plan.table
    assert_same_bits(native.sample(denoiser, plan, batch=2).states, expected)
    assert plan.table is table
    np.testing.assert_array_equal(table, np.array([*plan]))
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1.0


def test_a_list_may_change_between_runs(denoiser):
    rows = [*PLAN]
    first = native.sample(denoiser, rows, batch=1).states
    rows[0] = rows[0]._replace(a=0.5)
    other = native.sample(denoiser, rows, batch=1).states
    assert not np.array_equal(first, other)
    assert_same_bits(native.sample(denoiser, core.Plan(rows), batch=1).states, other)


def test_a_plan_that_cannot_run_is_refused_each_time(denoiser):
    plan = core.Plan([PLAN[0], PLAN[1]._replace(b=float("inf"))])
    for _ in range(2):
        with pytest.raises(InvalidInput, match="b of row 2 is inf"):
            native.sample(denoiser, plan, batch=1)
    kept = core.Plan([row._replace(ka=0.0, ks=0.0) for row in PLAN])
    native.sample(denoiser, kept, batch=1)
    with pytest.raises(InvalidInput, match="row 1 has ka=ks=0"):  # the table is there already
        native.sample(denoiser, kept, batch=1, mask=IMAGE)


END = (2 - 2**-24) * 2.0**127  # half a step above the largest float32: what rounds to infinity begins here


@pytest.mark.parametrize("sign", [1, -1])
def test_what_rounds_to_infinity_is_refused(denoiser, sign):
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(sign * END))
    largest = sign * np.nextafter(END, 0)
    assert np.isfinite(np.float32(largest))
    native.sample(denoiser, [PLAN[0]._replace(b=largest)], batch=1)
    native.sample(denoiser, [PLAN[0]], batch=1, label=LABEL, guidance=largest)
    with pytest.raises(InvalidInput, match=r"b of row 1 is .*finite in float32"):
        native.sample(denoiser, [PLAN[0]._replace(b=sign * END)], batch=1)
    with pytest.raises(InvalidInput, match=r"guidance is .*finite in float32"):
        native.sample(denoiser, [PLAN[0]], batch=1, label=LABEL, guidance=sign * END)


# ---- callbacks and interruption
class Halt(Exception):
    pass


def test_an_error_of_the_callable_arrives_as_it_was_raised():
    error = Halt("the network is out")

    def fail(x, s, t, label, out):
        raise error

    with pytest.raises(Halt) as caught:
        native.sample(native.callable_denoiser(fail, SHAPE), PLAN, batch=1)
    assert caught.value is error


def test_on_row_sees_every_row_and_may_stop_the_run(denoiser):
    seen = []
    native.sample(denoiser, PLAN, batch=1, on_row=seen.append)
    assert seen == [0, 1, 2, 3]

    def stop(k):
        seen.append(k)
        if k == 1:
            raise Halt

    seen.clear()
    with pytest.raises(Halt):
        native.sample(denoiser, PLAN, batch=1, on_row=stop)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    "network",
    [
        "''.format",  # takes anything, and is no Python code: only the loop itself can notice Ctrl-C
        "lambda *views: time.sleep(0.05)",
    ],
)
def test_ctrl_c_ends_the_run(network):
    code = f"""
import os, signal, threading, time
import numpy as np
from pyflow import native
def interrupt():
    global sent
    sent = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)
denoiser = native.callable_denoiser({network}, (3,))
threading.Timer(0.5, interrupt).start()
try:
    native.sample(denoiser, np.tile([0, 1, 1, 0, 0, 0, 1, 0], (5_000_000, 1)), batch=1)
except KeyboardInterrupt:
    print(time.perf_counter() - sent)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout or "inf") < 5, "the run went on after Ctrl-C"  # on a busy machine too


# ---- refusals
IMAGE = np.zeros(SHAPE, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0; expected 1 to"),
        ({"batch": 1.0}, "batch is 1.0; expected an integer"),
        ({"seed": -1}, "seed is -1"),
        ({"first": 2**32 - 1, "batch": 2}, "picture numbers end at"),
        ({"plan": []}, r"the plan has shape \(0,\)"),
        ({"plan": [(0.0,) * 7]}, r"the plan has shape \(1, 7\)"),
        ({"plan": ["euler"]}, "expected a list of rows"),
        ({"plan": [PLAN[0]._replace(h=0.5)]}, "row 1 has h != 0"),
        ({"plan": [PLAN[0], PLAN[1]._replace(t=float("nan"))]}, "t of row 2 is nan"),
        ({"guidance": 2.0, "label": None}, "guidance is 2.0 and label is None"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"label": -1}, "label is -1; expected an integer, 0 or more"),
        ({"label": 0.5}, "label is 0.5"),
        ({"label": [1, 2]}, "or 1 of them"),
        ({"label": np.uint64(2**63)}, "label is .*9223372036854775808"),
        ({"null_label": -1}, "null_label is -1"),
        ({"image": IMAGE}, "image is given and mask is None"),
        ({"mask": IMAGE}, "ka=.* and image is None"),
        ({"mask": IMAGE + 2, "image": IMAGE}, "mask runs from 2.0 to 2.0"),
        ({"mask": IMAGE, "image": IMAGE * np.float32(np.nan)}, "image holds a NaN"),
        ({"mask": IMAGE[0, 0, :2], "image": IMAGE}, "mask has shape .* broadcasts"),
        ({"noise0": IMAGE.astype(np.float64)}, "noise0 is dtype float64"),
        ({"denoiser": fill}, "denoiser is a function"),
    ],
)
def test_what_cannot_be_sampled_is_refused(denoiser, change, message):
    arguments = {"denoiser": denoiser, "plan": PLAN, "batch": 1, "label": LABEL, **change}
    with pytest.raises(InvalidInput, match=message):
        native.sample(**arguments)


@pytest.mark.parametrize(("function", "shape"), [(None, SHAPE), (fill, (0, 3)), (fill, ("3",))])
def test_what_is_no_network_is_refused(function, shape):
    with pytest.raises(InvalidInput, match="expected"):
        native.callable_denoiser(function, shape)
