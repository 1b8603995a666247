"""A network of one's own: saved, loaded with its module, trained, exported, sampled; no file names code to run."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyflow.training.batch import endless
from pyflow.training.recipes import recipe
from pyflow.training.trainer import train
from tiny import POINTS, UNET, network
from torch import Tensor, nn

import pyflow
from pyflow import checkpoint, commands
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.export import export
from pyflow.spec import MLP, Own, Spec
from pyflow.verify import verify


class Mine(nn.Module):
    """Two times and three classes, with a weight that two layers share."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 2)
        self.middle, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.label = nn.Embedding(4, width)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h = torch.tanh(self.enter(torch.cat([x, s[:, None], t[:, None]], dim=1)) + self.label(label))
        return self.leave(torch.tanh(self.again(torch.tanh(self.middle(h)))))


SPEC = Spec(Own("Mine", (2,), classes=3, times=2), null_label=True)


@pytest.fixture
def mine(rng) -> nn.Module:
    torch.manual_seed(int(rng.integers(2**31)))
    return Mine()


@pytest.fixture
def saved(mine, tmp_path):
    checkpoint.save(tmp_path / "mine", mine, SPEC)
    return tmp_path / "mine"


def states(flow, seed: int) -> np.ndarray:
    return flow.sample(5, steps=3, label=[0, 1, 2, 0, 1], guidance=2.0, seed=seed).states


def test_a_copy_of_the_module_is_loaded_and_the_module_stays(mine, saved):
    fresh = Mine()
    before = copy.deepcopy(fresh.state_dict())
    loaded, spec = checkpoint.load(saved, fresh)
    assert spec == SPEC
    assert isinstance(loaded, Mine)
    assert not loaded.training
    for name, weight in mine.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
        assert torch.equal(fresh.state_dict()[name], before[name]), name


def test_the_spec_names_no_code(saved):
    told = (saved / "spec.json").read_text()
    assert '"name": "Mine"' in told
    assert __name__ not in told


@pytest.mark.parametrize("do", [checkpoint.load, pyflow.load, lambda at: export(at, at.with_name("engine"))])
def test_without_its_module_it_is_refused_by_name(do, saved):
    with pytest.raises(
        InvalidInput, match=r"your own Mine, .*; expected the module too, .*load\(folder, model=Mine\(\)"
    ):
        do(saved)
    assert not saved.with_name("engine").exists()


def test_a_module_of_other_weights_is_refused(saved):
    with pytest.raises(InvalidArtefact, match=r"(?s)do not fit the Mine that was given: .*size mismatch for enter"):
        pyflow.load(saved, model=Mine(width=9))
    with pytest.raises(InvalidArtefact, match="do not fit the MLPNet that was given"):
        checkpoint.load(saved, network(POINTS))


class Narrow(Mine):
    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return super().forward(x, s, t, label)[:, :1]


class Few(Mine):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def test_a_module_of_another_call_or_shape_is_refused(saved):
    """A prediction (batch, 1) would be broadcast to (batch, 2) without a word."""
    with pytest.raises(InvalidInput, match=r"Narrow made \(2, 1\) of x \(2, 2\); expected a tensor of x's shape"):
        pyflow.load(saved, model=Narrow())
    with pytest.raises(InvalidInput, match=r"Few cannot be called net\(x, s, t, label\): "):
        pyflow.load(saved, model=Few())


def test_a_module_where_none_is_wanted_is_refused(mine, tiny_checkpoint):
    with pytest.raises(
        InvalidInput, match="model is a Mine; expected None: the checkpoint's network is pyflow's own UNet"
    ):
        pyflow.load(tiny_checkpoint, model=mine)


def test_the_sampler_runs_it(mine, saved, rng):
    """One Euler step from the noise is the noise and what the module says."""
    seed = int(rng.integers(2**31))
    flow = pyflow.load(saved, model=Mine())
    noise = torch.from_numpy(pyflow.noise.normal(seed, 0, 5, 2, 0))
    label = torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        wanted = noise + mine(noise, torch.zeros(5), torch.ones(5), label)
    came = flow.sample(5, steps=1, label=label.tolist(), seed=seed).states
    np.testing.assert_allclose(came, wanted.numpy(), rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}")


def test_its_engine_needs_no_module(mine, saved, tmp_path, rng):
    seed, engine = int(rng.integers(2**31)), tmp_path / "mine.engine"
    assert commands.export_engine(saved, engine, "onnx", model=Mine())
    assert not commands.export_engine(saved, engine, "onnx", model=Mine())
    reference = states(pyflow.load(saved, model=Mine()), seed)
    np.testing.assert_allclose(states(pyflow.load(engine), seed), reference, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidInput, match=r"model is 'Mine'; expected None: .* is an engine, which has its own"):
        pyflow.load(engine, model=mine)
    assert verify(engine).worst < 1e-5
    assert verify(engine, saved, model=Mine()).worst < 1e-5
    with pytest.raises(InvalidInput, match="your own Mine"):
        verify(engine, saved)


@pytest.mark.slow
def test_its_compiled_engine_needs_no_module(saved, tmp_path, rng):
    seed = int(rng.integers(2**31))
    export(saved, tmp_path / "mine.engine", "aoti", model=Mine())
    reference = states(pyflow.load(saved, model=Mine()), seed)
    np.testing.assert_allclose(states(pyflow.load(tmp_path / "mine.engine"), seed), reference, rtol=1e-4, atol=1e-5)


def test_the_native_engine_refuses_it_by_name(saved, tmp_path):
    with pytest.raises(InvalidInput, match="your own Mine, which the native engine does not know: take --to onnx"):
        export(saved, tmp_path / "mine.engine", "native", model=Mine())
    assert not (tmp_path / "mine.engine").exists()


def test_without_classes_no_label_comes(tmp_path, rng):
    """A graph has no label then, and the module is called with None."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            return torch.tanh(self.layer(torch.cat([x, s[:, None]], dim=1)))

    torch.manual_seed(int(rng.integers(2**31)))
    checkpoint.save(tmp_path / "plain", Plain(), Spec(Own("Plain", (2,))))
    export(tmp_path / "plain", tmp_path / "plain.engine", model=Plain())
    came, wanted = (
        flow.sample(4, steps=2, seed=3).states
        for flow in (pyflow.load(tmp_path / "plain.engine"), pyflow.load(tmp_path / "plain", model=Plain()))
    )
    np.testing.assert_allclose(came, wanted, rtol=1e-5, atol=1e-6)


# ---- training
def points(count: int) -> Tensor:
    return 2.0 + 0.1 * torch.randn(count, 2)


def shorter(**changes):
    own = Own("Mine", (2,), classes=3, times=2)
    return replace(recipe("cfm", "digits"), network=own, steps=40, batch=64, learning_rate=1e-2, **changes)


def test_it_trains_from_the_given_module_which_stays(mine, tmp_path):
    before = copy.deepcopy(mine.state_dict())
    train(shorter(), SPEC, endless(points), tmp_path / "a", start=mine)
    after = checkpoint.load(tmp_path / "a", mine)[0]
    assert all(torch.equal(mine.state_dict()[name], weight) for name, weight in before.items()), "the given one moved"
    moved = (after.leave.weight - mine.leave.weight).abs().max()
    assert moved > 1e-3
    assert torch.equal(after.middle.weight, after.again.weight), "a shared weight came apart"


def test_its_run_resumes_bit_for_bit(mine, tmp_path):
    class Stop(Exception):
        pass

    def draws(limit: int):
        left = [limit]

        def draw(count: int):
            left[0] -= 1
            if left[0] < 0:
                raise Stop
            return endless(points)(count)

        return draw

    train(shorter(), SPEC, draws(99), tmp_path / "whole", start=mine, save_every=10)
    with pytest.raises(Stop):
        train(shorter(), SPEC, draws(23), tmp_path / "parts", start=mine, save_every=10)
    train(shorter(), SPEC, draws(99), tmp_path / "parts", start=mine, save_every=10)
    assert checkpoint.weights_sha256(tmp_path / "whole") == checkpoint.weights_sha256(tmp_path / "parts")


def test_training_without_the_module_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="your own Mine"):
        train(shorter(), SPEC, endless(points), tmp_path / "a")
    with pytest.raises(InvalidInput, match="Narrow made"):
        train(shorter(), SPEC, endless(points), tmp_path / "a", start=Narrow())
    assert not (tmp_path / "a").exists()


# ---- its spec, and guided networks
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "os.system"}, r"name is os\.system; expected the name of a class"),
        ({"shape": ()}, r"shape is \(\); expected positive sizes"),
        ({"classes": -1}, "classes is -1; expected 0 or more"),
        ({"times": 3}, "times is 3; expected 1"),
    ],
)
def test_a_wrong_value_is_named(change, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        replace(SPEC.network, **change)
    data = SPEC.to_json()
    data["network"] |= change
    with pytest.raises(InvalidArtefact, match=sentence):
        Spec.from_json(data, "spec.json")


GUIDED = {
    "unet": Spec(replace(UNET, times=2, guided=True), null_label=True, provenance={"steps": 3}),
    "mlp": Spec(MLP(shape=(2,), width=16, depth=2, classes=3, guided=True)),
}


@pytest.mark.parametrize("kind", GUIDED)
def test_a_guided_checkpoint_is_refused_where_it_cannot_run_and_baked_it_runs(kind, tmp_path, rng, capsys):
    from pyflow.cli import main

    spec, guidance = GUIDED[kind], float(rng.uniform(1, 5))
    model = network(spec.network, int(rng.integers(2**31)))
    guided, baked = tmp_path / "guided", tmp_path / "baked"
    checkpoint.save(guided, model, spec)
    for refused in (
        lambda: pyflow.load(guided),
        lambda: export(guided, tmp_path / "a.engine"),
        lambda: export(guided, tmp_path / "a.engine", "native"),
    ):
        with pytest.raises(
            InvalidInput, match=r"takes the guidance as an input; expected .*`pyflow bake CHECKPOINT --g"
        ):
            refused()

    assert main(["bake", str(guided), "--guidance", str(guidance), "--out", str(baked)]) == 0
    assert f"baked: {baked}" in capsys.readouterr().out
    flow = pyflow.load(baked)
    assert (flow.spec.network.guided, flow.spec.null_label) == (False, False)
    origin = {"guidance": guidance, "baked_from": checkpoint.weights_sha256(guided)}
    assert flow.spec.provenance == {**spec.provenance, **origin}
    seed = int(rng.integers(2**31))
    noise = pyflow.noise.normal(seed, 0, 3, int(np.prod(spec.network.shape)), 0).reshape(3, *spec.network.shape)
    x, label, told = torch.from_numpy(noise), torch.tensor([2, 0, 1]), torch.full((3,), guidance)
    with torch.no_grad():
        wanted = (x + model(x, torch.zeros(3), torch.ones(3), label, told)).numpy()
    came = flow.sample(3, steps=1, label=label.tolist(), seed=seed).states
    assert np.linalg.norm(came - wanted) < 2e-6 * np.linalg.norm(wanted), f"seed {seed}, guidance {guidance}"


@pytest.mark.parametrize("guidance", ["0", "-1", "nan", "inf", "101"])
def test_a_guidance_that_cannot_be_is_refused(guidance, tmp_path, capsys):
    from pyflow.cli import main

    checkpoint.save(tmp_path / "guided", network(GUIDED["mlp"].network), GUIDED["mlp"])
    assert main(["bake", str(tmp_path / "guided"), "--guidance", guidance, "--out", str(tmp_path / "a")]) == 2
    assert "expected a number above 0 and at most 100" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("guidance", "fits"), [(1.0, True), (3.0, True), (3.1, False), (0.9, False)])
def test_a_guidance_that_the_network_was_never_told_is_refused(guidance, fits, tmp_path):
    spec = replace(GUIDED["mlp"], provenance={"options": {"guidance": 3.0}})
    checkpoint.save(tmp_path / "guided", network(spec.network), spec)
    if fits:
        commands.bake(tmp_path / "guided", tmp_path / "a", guidance)
    else:
        with pytest.raises(InvalidInput, match=r"expected 1 to 3, which the network was told in training"):
            commands.bake(tmp_path / "guided", tmp_path / "a", guidance)
    assert (tmp_path / "a").exists() == fits


def test_baking_keeps_the_guided_checkpoint_and_wants_one(tmp_path, saved):
    checkpoint.save(tmp_path / "guided", network(GUIDED["mlp"].network), GUIDED["mlp"])
    with pytest.raises(InvalidInput, match="the guided checkpoint; expected another folder"):
        commands.bake(tmp_path / "guided", tmp_path / "guided", 2.0)
    checkpoint.save(tmp_path / "plain", network(POINTS), Spec(POINTS))
    with pytest.raises(InvalidInput, match="the network is not guided"):
        commands.bake(tmp_path / "plain", tmp_path / "a", 2.0)
    with pytest.raises(InvalidInput, match="your own Mine"):
        commands.bake(saved, tmp_path / "a", 2.0)
    assert not (tmp_path / "a").exists()
