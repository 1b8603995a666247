"""Networks that see the mask, learnt from data: what they are shown, where they begin, and the recipe."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from pyflow.training.batch import Batch, mask_bank, unpaired
from pyflow.training.beginnings import begin, spec_of
from pyflow.training.data import digits
from pyflow.training.objectives import objective
from pyflow.training.recipes import TUNED, recipe
from pyflow.training.settings import Options
from pyflow.training.trainer import train
from tiny import POINTS, UNET, network, save
from tiny_runs import SETTINGS, Interrupted, data, interrupted, run, whole

from pyflow import checkpoint, commands
from pyflow import masks as mask_files
from pyflow.cli import main
from pyflow.core import IMAGE, NOISE, VELOCITY
from pyflow.errors import InvalidInput
from pyflow.spec import Spec

SEEING = replace(UNET, extra=2)


# ---- draws
def test_masks_change_no_other_draw(seed):
    images, labels, masks = torch.randn(20, *UNET.shape), torch.arange(20) % 3, mask_bank(UNET.shape, seed)
    torch.manual_seed(seed)
    plain = unpaired(images, labels, flip=True)(64)
    torch.manual_seed(seed)
    holed = unpaired(images, labels, flip=True, masks=masks, masked=0.5)(64)
    assert plain.mask is None
    for one, other in zip(plain[:4], holed[:4]):
        assert torch.equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_this_share_of_the_samples_has_a_hole_of_the_bank(share, seed):
    images, masks = torch.randn(5, *UNET.shape), mask_bank(UNET.shape, seed)
    holed = unpaired(images, torch.zeros(5, dtype=torch.int64), masks=masks, masked=share)(4000).mask
    keeps = (holed == 0).flatten(1).any(1)
    assert abs(keeps.double().mean() - share) <= 5 * math.sqrt(share * (1 - share) / 4000), f"seed {seed}"
    assert (masks == 0).flatten(1).any(1).all()
    known = {hole.numpy().tobytes() for hole in masks}
    assert all(hole.numpy().tobytes() in known for hole in holed[keeps][:200])
    assert len({hole.numpy().tobytes() for hole in holed[keeps]}) >= 50 * share
    assert torch.equal(masks, mask_bank(UNET.shape, seed))
    assert not torch.equal(masks, mask_bank(UNET.shape, seed + 1))


def test_a_flipped_picture_is_told_as_it_is_seen(seed):
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    draw = unpaired(images, torch.zeros(1, dtype=torch.int64), flip=True, masks=mask_bank(UNET.shape, seed))
    batch = draw(64)
    told = batch.joined(batch.image)[:, 1:2]
    flipped = batch.image[:, 0, 0, 0] == 7
    assert 0 < flipped.sum() < 64
    for index in range(64):
        seen = images[0].flip(-1) if flipped[index] else images[0]
        assert torch.equal(told[index], seen * (1 - batch.mask[index]))


# ---- where it begins
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_begins_with_what_its_start_says_whatever_is_kept(channels, tmp_path, rng):
    seed = int(rng.integers(2**31))
    blind = replace(UNET, shape=(channels, 8, 8))
    save(tmp_path / "start", Spec(blind), seed)
    made = begin(tmp_path / "start", replace(blind, extra=channels + 1)).eval()
    x, kept = torch.randn(6, channels, 8, 8), 10 * torch.randn(6, channels + 1, 8, 8)
    s, label = torch.rand(6), torch.arange(6) % 4
    joined = torch.cat([x, kept], dim=1)
    with torch.no_grad():
        expected = network(blind, seed)(x, s, s, label)
        torch.testing.assert_close(made(joined, s, s, label), expected, rtol=0, atol=1e-5, msg=f"seed {seed}")
    assert not made.enter.weight[:, channels:].any()
    made.train()(joined, s, s, label).square().sum().backward()
    assert made.enter.weight.grad[:, channels:].abs().amin() > 0, "what is kept is never learnt"


def test_one_that_sees_already_goes_on_as_it_is(tmp_path):
    save(tmp_path / "start", Spec(SEEING), 3)
    made = begin(tmp_path / "start", SEEING)
    for name, weight in network(SEEING, 3).state_dict().items():
        assert torch.equal(made.state_dict()[name], weight)


# ---- the recipe
def words(*said: object) -> list[str]:
    return [str(word) for word in said]


@pytest.fixture
def start(tmp_path):
    """A teacher of digits too small to say anything."""
    small = replace(UNET, shape=(1, 16, 16), attention=(), classes=10)
    return save(tmp_path / "start", Spec(small, null_label=True, provenance={"data": "digits"}))


def test_inpaint_is_a_recipe_like_the_others(start, tmp_path):
    setting = commands.teacher("inpaint", start=start)
    assert (setting.objective, setting.data, setting.learning_rate) == ("cfm", "digits", 5e-4)
    assert (setting.label_dropout, setting.options.masked, setting.options.region) == (0.15, 0.5, 0.3)
    assert setting.network == replace(checkpoint.load_spec(start).network, extra=2)
    for size, rate in (("1m", 5e-4), ("9m", 5e-5), ("36m", 5e-5)):
        of_size = recipe("inpaint", "cifar10", size=size)
        assert (of_size.network.extra, of_size.learning_rate) == (4, rate)
    assert [*TUNED] == ["inpaint"]


def test_a_start_of_noise_goes_on_predicting_noise(tmp_path):
    for path, prediction, solver, name in (("linear", VELOCITY, "euler", "cfm"), ("vp-linear", NOISE, "ddim", "ddpm")):
        folder = save(tmp_path / name, Spec(UNET, path, prediction, solver))
        setting = commands.teacher("inpaint", start=folder)
        assert (setting.path, setting.prediction, setting.solver) == (path, prediction, solver)
        assert setting.objective == name
        objective(setting.objective, spec_of(setting), setting.options)


def test_the_command_fine_tunes_and_its_yaml_makes_it_again(start, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    said = words("train", "inpaint", "--start", start, "--steps", 3, "--batch", 4, "--watch", 2)
    assert main([*said, "--out", str(out)]) == 0
    spec = checkpoint.load_spec(out)
    assert spec.network.sees_mask
    assert spec.null_label
    assert spec.provenance["start"] == checkpoint.weights_sha256(start)
    assert main([*said, "--out", str(again), "--config", str(out / "recipe.yaml")]) == 0
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(out)
    capsys.readouterr()
    assert main([*said, "--out", str(out)]) == 0
    assert "was finished already" in capsys.readouterr().out
    looked = [json.loads(line) for line in (tmp_path / "out.log" / "log.jsonl").read_text().splitlines()]
    signs = next(line for line in looked if line["step"] == 2)
    assert {"jvp-norm", "frechet-4-steps/pixels-4x4", "weighted"} <= signs.keys()
    assert all(math.isfinite(value) for value in signs.values() if isinstance(value, float))
    assert (tmp_path / "out.log" / "step-000002.png").is_file()


def test_print_config_knows_the_start(start, capsys):
    assert main(words("train", "inpaint", "--start", start, "--print-config", "--region", 0.1)) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert (told["network"]["channels"], told["network"]["extra"]) == (8, 2)
    assert (told["options"]["region"], told["options"]["masked"]) == (0.1, 0.5)
    assert main(words("train", "inpaint", "--print-config")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["network"]["channels"] == 24


def test_the_seen_state_is_kept_over_an_interruption(tmp_path):
    setting = SETTINGS["masks"]
    assert run(tmp_path / "whole", setting)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", setting, interrupted(data(setting), 4))
    record = tmp_path / "run" / checkpoint.SPEC
    told = json.loads(record.read_text())
    for option in ("masked", "region"):  # as a pyflow without masks would have written it
        del told["spec"]["provenance"]["options"][option]
    record.write_text(json.dumps(told))
    assert run(tmp_path / "run", setting)
    assert whole(tmp_path / "run") == whole(tmp_path / "whole")
    other = replace(setting, options=Options(region=0.2))
    with pytest.raises(InvalidInput, match="holds a checkpoint of another recipe"):
        run(tmp_path / "run", other)


def test_a_hole_is_learnt_from_what_is_kept(tmp_path, seed):
    """Pictures of one grey each: after a few steps the hole follows the kept half."""
    grey = (2 * torch.rand(256, 1, 1, 1) - 1).expand(-1, *UNET.shape).contiguous()
    setting = replace(
        SETTINGS["masks"], steps=150, batch=32, learning_rate=5e-3, network=replace(SEEING, classes=0), seed=seed
    )
    draw = unpaired(grey, torch.zeros(256, dtype=torch.int64), masks=mask_bank(UNET.shape, seed))
    spec = Spec(setting.network)
    train(setting, spec, draw, tmp_path / "run", save_every=1000, watch=0)
    net = checkpoint.load(tmp_path / "run")[0]
    mask = torch.from_numpy(mask_files.draw("left", 8, 8, 9))
    shade, noise = torch.linspace(-0.9, 0.9, 9)[:, None, None, None], torch.randn(1, *UNET.shape)
    batch = Batch(
        noise.expand(9, -1, -1, -1), torch.zeros(9, dtype=torch.int64), shade.expand(-1, 1, 8, 8), noise, mask
    )
    with torch.no_grad():
        zero = torch.zeros(9)
        filled = (batch.noise + net(batch.joined(batch.noise), zero, zero, batch.label))[..., :4].mean((1, 2, 3))
    assert torch.corrcoef(torch.stack([filled, shade.flatten()]))[0, 1] > 0.9, f"seed {seed}: {filled}"


# ---- what is refused
def test_what_cannot_be_filled_is_one_sentence(start, tmp_path, refusal):
    points = save(tmp_path / "points", Spec(POINTS))
    other = save(tmp_path / "other", Spec(UNET))
    picture = save(tmp_path / "picture", Spec(UNET, prediction=IMAGE, solver="ddim"))
    average = save(tmp_path / "average", Spec(replace(UNET, times=2)))
    out = tmp_path / "out"
    for said, expected in (
        ((), "--start is missing; recipe 'inpaint' expected a checkpoint to go on from"),
        (("--data", "checkerboard"), "data is 'checkerboard'; recipe 'inpaint' expected pictures"),
        (("--start", points), "is a MLP of times=2 that predicts velocity; recipe 'inpaint' expected a UNet"),
        (("--start", picture), "that predicts image; recipe 'inpaint' expected a UNet of times=1"),
        (("--start", average), "is a UNet of times=2"),
        (("--start", other), "data 'digits' has shape (1, 16, 16) and 10 classes, the recipe's network has (1, 8, 8)"),
        (("--start", start, "--network.channels", 16), "do not fit the recipe's network"),
        (("--start", start, "--masked", 1.5), "masked is 1.5; expected 0 to 1, a share of the samples"),
        (("--start", start, "--masked", "nan"), "masked is nan; expected 0 to 1"),
        (("--start", start, "--region", -0.1), "region is -0.1; expected 0 to 1, a share of the loss"),
        (("--start", start, "--network.extra", 0), "region is 0.2; expected 0.3: cfm of a network that sees no mask"),
    ):
        more = ("--region", 0.2) if "--network.extra" in said else ()
        assert expected in refusal("train", "inpaint", *said, *more, "--steps", 1, "--out", out)
        assert not out.exists()


def test_digits_have_masks_of_every_kind():
    bank = mask_bank(digits().shape, 0)
    assert bank.shape[1:] == (1, 16, 16)
    for kind in ("centre", *mask_files.HALVES):
        (one,) = torch.from_numpy(mask_files.draw(kind, 16, 16, 1))
        assert (bank == one).flatten(1).all(1).any(), kind
