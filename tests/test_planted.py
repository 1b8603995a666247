"""What public implementations get wrong in the objectives of pairs and of data, planted one by one, and refused.

Those of flow maps are in test_flow_maps.py and test_derivatives.py, wrong targets of data in test_objectives.py.
"""

import pytest
import torch
from exact import LAW, SIZE, Bent, Instant, Straight, draw, draw_pairs
from planted import Mutant, planted
from pyflow.training import objectives
from pyflow.training.batch import Batch, Losses
from pyflow.training.objectives import OBJECTIVES, Loss
from pyflow.training.settings import Options
from torch import Tensor

from pyflow.core import IMAGE, PATHS, VELOCITY, V
from pyflow.spec import MLP, Spec

CONVENTIONS = {
    "reflow": (VELOCITY, "linear"),
    "grid": (VELOCITY, "linear"),
    "lines": (IMAGE, "linear"),
    "naive": (IMAGE, "linear"),
    "cfm": (VELOCITY, "linear"),
    "ddpm": (V, "vp-cosine"),
}
EVEN = lambda t: 0.4 < t.double().mean() < 0.6 and len(t.unique()) > len(t) / 2  # noqa: E731
VISITED = {
    "reflow": lambda t: (t[: len(t) // 2] == 0).all() and EVEN(t[len(t) // 2 :]),
    "grid": lambda t: t.unique().tolist() == [0, 0.25, 0.5, 0.75],
    "lines": EVEN,
    "naive": lambda t: (t == 0).all(),
    "cfm": EVEN,
    "ddpm": EVEN,
}


class Asked(Bent):
    """An exact network that keeps what it was asked."""

    def __init__(self, net: Bent) -> None:
        super().__init__()
        self.net = net

    def exact(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.x, self.s, self.t = x, s[:, 0], t[:, 0]
        return self.net.exact(x, s, t, label)


def exact_network(name: str) -> Bent:
    prediction, path = CONVENTIONS[name]
    if OBJECTIVES[name].from_pairs:
        return Straight(prediction == IMAGE)
    return Instant(PATHS[path], LAW.says(prediction))


def assert_sound(loss: Loss, name: str, seed: int) -> None:
    """Times as told, states of these times; pairs of a straight flow without any loss; data at a standstill."""
    prediction, path = CONVENTIONS[name]
    net, spec = Asked(exact_network(name)), Spec(MLP(shape=(SIZE,)), path, prediction)
    batch: Batch = (draw_pairs if OBJECTIVES[name].from_pairs else draw)(20_000)
    losses: Losses = loss(net, spec, batch, Options(times="uniform"))
    assert torch.equal(net.s, losses.s.double()), f"seed {seed}: told another time"
    assert torch.equal(net.t, net.s), f"seed {seed}: told another time"
    assert VISITED[name](losses.s), f"seed {seed}: the times are {losses.s}"
    states = PATHS[path].mix(batch.image, batch.noise, losses.s.double()[:, None])
    assert (net.x - states).abs().max() < 1e-5, f"seed {seed}: the states are of another time or of other noise"
    (slope,) = torch.autograd.grad(losses.each.mean(), net.bend)
    if OBJECTIVES[name].from_pairs:
        assert losses.each.max() < 1e-6, f"seed {seed}: a loss where there is nothing to learn"
    assert slope.abs().max() < 0.2, f"seed {seed}: the gradient at the exact answer is {slope}"


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_objectives_are_sound(name, seed):
    assert_sound(OBJECTIVES[name].loss, name, seed)


FRESH = ("(batch.image, batch.noise, at)", "(batch.image, torch.randn_like(batch.noise), at)")
MUTANTS = {
    "reflow on fresh noise": Mutant("reflow", "_bent", "x = path.mix" + FRESH[0], "x = path.mix" + FRESH[1]),
    "reflow toward the noise": Mutant("reflow", "_bent", "said - target(", "said + target("),
    "reflow's jumps at the picture": Mutant("reflow", "reflow", "zeros_like", "ones_like"),
    "reflow's jumps forgotten": Mutant("reflow", "reflow", "torch.zeros_like(t[:jumps])", "t[:jumps]"),
    "a time for the whole batch": Mutant("reflow", "reflow", "batch.coins[:, 0]", "batch.coins[:1, 0].expand(20_000)"),
    "a grid that ends at the picture": Mutant("grid", "grid", ".floor()", ".ceil()"),
    "a grid of other steps": Mutant("grid", "grid", "/ options.grid", "/ (options.grid - 1)"),
    "the grid's noise drawn anew": Mutant("grid", "_bent", "x = path.mix" + FRESH[0], "x = path.mix" + FRESH[1]),
    "the grid told the end of its step": Mutant(
        "grid", "_bent", "net(batch.joined(x), t,", "net(batch.joined(x), t + 0.25,"
    ),
    "lines on fresh noise": Mutant("lines", "_regress", "path.mix" + FRESH[0], "path.mix" + FRESH[1]),
    "lines of the velocity": Mutant("lines", "_regress", "path, spec.prediction,", "path, VELOCITY,"),
    "lines at the noise alone": Mutant("lines", "lines", "batch.coins[:, 0]", "torch.zeros_like(batch.coins[:, 0])"),
    "lines told the other end": Mutant("lines", "_regress", "at)), t, t,", "at)), 1 - t, 1 - t,"),
    "naive at the picture": Mutant("naive", "naive", "zeros_like", "ones_like"),
    "naive on fresh noise": Mutant("naive", "_regress", "path.mix" + FRESH[0], "path.mix" + FRESH[1]),
    "naive toward its noise": Mutant(
        "naive", "_regress", "batch.image, batch.noise, at)\n", "batch.noise, batch.image, at)\n"
    ),
    "flow matching told noise for data": Mutant("cfm", "_regress", "at)), t, t,", "at)), 1 - t, 1 - t,"),
    "flow matching at one time": Mutant("cfm", "cfm", "batch.coins[:, 0]", "batch.coins[:1, 0].expand(20_000)"),
    "flow matching of two noises": Mutant("cfm", "_regress", "path.mix" + FRESH[0], "path.mix" + FRESH[1]),
    "diffusion on the straight path": Mutant(
        "ddpm", "_regress", "path, at = PATHS[spec.path]", 'path, at = PATHS["linear"]'
    ),
    "diffusion of two noises": Mutant("ddpm", "_regress", "path.mix" + FRESH[0], "path.mix" + FRESH[1]),
    "v with its sign turned": Mutant("ddpm", "_regress", "said - target(", "said + target("),
}
assert {mutant.name for mutant in MUTANTS.values()} == CONVENTIONS.keys()


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_planted_bug_is_refused(mutant, seed):
    with pytest.raises(AssertionError, match="seed"):
        assert_sound(planted(objectives, mutant), mutant.name, seed)
