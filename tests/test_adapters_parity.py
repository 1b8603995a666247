"""diffusers' schedulers and pyflow's rows, held to each other step by step; a UNet2DModel in pyflow's loop."""

import itertools
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pyflow-engine[diffusers]'")

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from PIL import Image
from pyflow.training import pairs

from pyflow import core, native
from pyflow.adapters import PyflowPipeline, PyflowScheduler, Teacher, load_teacher, path_of, plan_of
from pyflow.cli import main
from pyflow.engines.runner import Request
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

SHAPE = (2, 3, 4, 4)


@pytest.fixture
def tensor(rng):
    return lambda dtype=torch.float32: torch.from_numpy(rng.standard_normal(SHAPE)).to(dtype)


def apart(came: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value where that is above 1."""
    return (came - expected).abs().max().item() / max(1.0, expected.abs().max().item())


# ---- flow matching: sigma = 1 - t, velocity = noise - image
@pytest.mark.parametrize("stochastic", [False, True], ids=["euler", "renoise"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_flow_matching_is_euler_and_its_stochastic_form_renoise(tensor, steps, shift, stochastic):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic)
    theirs.set_timesteps(steps)
    ours = PyflowScheduler(solver="renoise" if stochastic else "euler", grid=(1 - theirs.sigmas.double()).tolist())
    ours.set_timesteps(steps)
    assert torch.allclose(ours.timesteps.float(), theirs.timesteps, atol=2e-4)
    x = y = tensor()
    drawn, again = (torch.Generator().manual_seed(steps) for _ in range(2))
    for mine, timestep in zip(ours.timesteps, theirs.timesteps):
        velocity = tensor()
        x = ours.step(velocity, mine, x, generator=drawn).prev_sample
        if stochastic and mine == ours.timesteps[-1]:
            drawn.set_state(again.get_state())  # diffusers draws for the last step too, and adds none of it
        y = theirs.step(velocity, timestep, y, generator=again).prev_sample
        assert apart(x, y) < 2e-6


def test_a_row_of_core_is_a_step_of_flow_matching(tensor):
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(4)
    plan = core.euler(core.LINEAR, core.VELOCITY, (1 - theirs.sigmas.double()).tolist())
    for row, timestep in zip(plan, theirs.timesteps):
        x, image, noise = tensor(), tensor(), tensor()
        came, _ = core.fused_step(row, x=x, cond=core.LINEAR.velocity(image, noise, row.s))
        assert apart(came, theirs.step(noise - image, timestep, x).prev_sample) < 1e-6


def test_a_network_runs_under_diffusers_own_scheduler(tiny_checkpoint):
    pipe = PyflowPipeline.from_checkpoint(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    named = {"num_inference_steps": 20, "class_labels": [0, 1], "guidance_scale": 2.0, "output_type": "latent"}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    theirs = pipe(2, torch.Generator().manual_seed(1), **named).images
    pipe.scheduler = PyflowScheduler(grid=(1 - pipe.scheduler.sigmas.double()).tolist())
    assert apart(pipe(2, torch.Generator().manual_seed(1), **named).images, theirs) < 1e-5


# ---- DDIM: the table of betas is a path
def ddim_scheduler(**config) -> DDIMScheduler:
    return DDIMScheduler(**{"clip_sample": False, **config})


def in_float64(scheduler: DDIMScheduler) -> DDIMScheduler:
    """The same table, so that what is left between two runs is how they round."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_rows_are_the_steps_of_ddim(tensor, prediction_type, eta, spacing):
    """float32 is compared with diffusers in float32, and with diffusers on a float64 table, which is what it means.

    Worst of 120 runs of 200 steps: 5e-6 apart, 2e-6 from what is meant. With eta=1 on a prediction of the sample
    diffusers itself is 2e-5 from it: it subtracts alphas near 1 in float32.
    """
    apart_in_float32 = 1e-4 if (prediction_type, eta) == ("sample", 1.0) else 1e-5
    for steps, to_one in itertools.product((1, 4, 50, 200), (True, False)):
        config = {"prediction_type": prediction_type, "timestep_spacing": spacing, "set_alpha_to_one": to_one}
        theirs, meant = ddim_scheduler(**config), in_float64(ddim_scheduler(**config))
        plan = plan_of(theirs, steps, eta)
        assert theirs.num_inference_steps is None, "the caller's scheduler is left as it was"
        for scheduler in (theirs, meant):
            scheduler.set_timesteps(steps)
        assert len(plan) == len(theirs.timesteps)
        came = told = tensor()
        came64 = told64 = came.double()
        for row, timestep in zip(plan, theirs.timesteps):
            p, z = tensor(), tensor()
            came, _ = core.fused_step(row, x=came, cond=p, noise=z)
            came64, _ = core.fused_step(row, x=came64, cond=p.double(), noise=z.double())
            fresh, fresh64 = (z, z.double()) if eta else (None, None)
            told = theirs.step(p, timestep, told, eta=eta, variance_noise=fresh).prev_sample
            told64 = meant.step(p.double(), timestep, told64, eta=eta, variance_noise=fresh64).prev_sample
            where = f"{steps} steps, set_alpha_to_one={to_one}, timestep {timestep}"
            assert apart(came, told) < apart_in_float32, where
            assert apart(came, told64) < 1e-5, where
            assert apart(came64, told64) < 1e-12, where


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_a_table_that_ends_in_pure_noise(tensor, prediction_type):
    scheduler = in_float64(
        ddim_scheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    )
    plan = plan_of(scheduler, 5)
    scheduler.set_timesteps(5)
    x = y = tensor(torch.float64)
    for row, timestep in zip(plan, scheduler.timesteps):
        p = tensor(torch.float64)
        x, _ = core.fused_step(row, x=x, cond=p)
        y = scheduler.step(p, timestep, y).prev_sample
        assert apart(x, y) < 1e-12


def test_path_of_is_exact_at_its_timesteps_and_refuses_the_rest():
    scheduler = ddim_scheduler()
    path = path_of(scheduler)
    for index in (0, 1, 500, 999):
        t = 1 - (index + 1) / 1000
        assert path.alpha(t) == float(scheduler.alphas_cumprod[index]) ** 0.5
        assert path.sigma(float(np.float32(t))) == (1 - float(scheduler.alphas_cumprod[index])) ** 0.5
    assert (path.alpha(1.0), path.sigma(1.0)) == (1.0, 0.0)
    with pytest.raises(InvalidInput, match=r"t is 0.5005, between two of the 1000 timesteps"):
        path.alpha(0.5005)
    with pytest.raises(InvalidInput, match="a table of 1000 timesteps has no rates; expected ddim, ddpm or renoise"):
        core.euler(path, core.NOISE, (0.0, 1.0))


def test_the_continuous_path_is_near_the_table():
    path, scheduler = core.VP_LINEAR, ddim_scheduler()
    far = max(abs(path.alpha(1 - (k + 1) / 1000) - path_of(scheduler).alpha(1 - (k + 1) / 1000)) for k in range(1000))
    assert far < 2e-3


@pytest.mark.parametrize("name", ["clip_sample", "thresholding"])
def test_rows_that_clamp_are_refused(name):
    with pytest.raises(InvalidInput, match=rf"{name} is True: .* set it to False: .*{name}=False"):
        plan_of(ddim_scheduler(**{name: True}), 4)


def test_wrong_steps_and_an_unknown_prediction_are_refused():
    for steps in (0, 1001):
        with pytest.raises(InvalidInput, match=f"steps is {steps}; expected 1 to 1000"):
            plan_of(ddim_scheduler(), steps)
    with pytest.raises(InvalidInput, match="prediction_type is 'flow'; expected one of epsilon, sample, v_prediction"):
        plan_of(ddim_scheduler(prediction_type="flow"), 4)
    with pytest.raises(InvalidInput, match="eta is 2; expected 0"):
        plan_of(ddim_scheduler(), 4, eta=2)


# ---- a UNet2DModel in pyflow's loop
def small_unet(seed: int = 0, **config) -> UNet2DModel:
    """The plan of google/ddpm-cifar10-32 with few channels, and weights that nobody trained."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    widths = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}
    places = {"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0}
    return UNet2DModel(8, **{**blocks, **widths, **places, **config}).eval()


@pytest.fixture(scope="module")
def ddpm_folder(tmp_path_factory):
    """model_index.json, unet/ and scheduler/ as a published DDPM has them, clip_sample and all; to be read only.

    Clamped steps of weights that nobody trained are chaotic: after 200 of them diffusers in float32 is 2 from diffusers
    in float64, the width of a picture. With the last layer at 3% it is 1e-5, and that is what can be compared.
    """
    folder, unet = tmp_path_factory.mktemp("teacher") / "ddpm", small_unet()
    with torch.no_grad():
        for parameter in unet.conv_out.parameters():
            parameter *= 0.03
    DDPMPipeline(unet, DDPMScheduler(clip_sample=True)).save_pretrained(folder)
    return folder


def of_ddimpipeline(monkeypatch, folder, batch: int, seed: int, steps: int, eta: float, **config) -> np.ndarray:
    """What diffusers' own pipeline makes of pyflow's noise; values in 0..1."""
    row = iter(range(steps + 1))

    def pyflow_noise(shape, **_):
        return torch.from_numpy(native.normal(seed, 0, batch, int(np.prod(shape[1:])), next(row)).reshape(shape))

    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **config)
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", pyflow_noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", pyflow_noise)
    return pipeline(batch, num_inference_steps=steps, eta=eta, output_type="np").images


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize(("steps", "eta"), [(4, 0.0), (20, 1.0), (200, 0.0)])
def test_a_teacher_makes_the_pictures_of_ddimpipeline(ddpm_folder, monkeypatch, rng, steps, eta, clip_sample):
    batch, seed = 12, int(rng.integers(2**32))
    expected = of_ddimpipeline(monkeypatch, ddpm_folder, batch, seed, steps, eta, clip_sample=clip_sample)
    flow = load_teacher(ddpm_folder, clip_sample=clip_sample)
    out = flow.sample(batch, steps=steps, seed=seed, solver="ddpm" if eta else None)
    came = (out.states / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)
    assert abs(came - expected).max() < 2e-5
    assert abs(out.images / 255 - expected).max() < 0.5 / 255 + 2e-5
    inside = (out.states > -1) & (out.states < 1)
    assert inside.any(), "the comparison is of more than the clamp at the border"


def test_pairs_of_a_folder_of_diffusers_are_ddimpipelines(ddpm_folder, tmp_path, monkeypatch, rng):
    """As it comes, clip_sample and all, through the command line; and its samples too."""
    seed = int(rng.integers(2**32))
    words = ["--steps", "5", "--seed", str(seed), "--count"]
    assert main(["pairs", str(ddpm_folder), "--out", str(tmp_path / "pairs"), *words, "3", "--batch", "2"]) == 0
    assert main(["sample", str(ddpm_folder), "--out", str(tmp_path / "sheet.png"), *words, "3", "--scale", "1"]) == 0
    (noise, labels, states), spec = pairs.load(tmp_path / "pairs")
    expected = of_ddimpipeline(monkeypatch, ddpm_folder, 3, seed, 5, 0.0)
    assert abs((states / 2 + 0.5).clip(0, 1).permute(0, 2, 3, 1).numpy() - expected).max() < 2e-5
    assert np.array_equal(noise.numpy().ravel(), native.normal(seed, 0, 3, 192, 0).ravel())
    assert (spec.solver, spec.classes, labels.tolist()) == ("ddim", 0, [0, 0, 0])
    assert spec.teacher == load_teacher(ddpm_folder).identity
    origin = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["origin"]
    assert (origin["source"], origin["backend"]) == ("ddpm", "diffusers")
    assert origin["teacher"]["scheduler"]["clip_sample"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[1:9, 1:9] / 255
    assert abs(sheet - expected[0]).max() < 0.5 / 255 + 2e-5


@pytest.mark.parametrize("clip_sample", [True, False])
def test_each_of_200_rows_of_a_teacher_is_a_step_of_ddim(rng, clip_sample):
    seed, unet, scheduler = int(rng.integers(2**31)), small_unet(), DDIMScheduler(clip_sample=clip_sample)
    flow = Teacher(small_unet(), scheduler, "none")
    plan = flow.plan(200)
    scheduler.set_timesteps(200)
    for k, (row, timestep) in enumerate(zip(plan, scheduler.timesteps, strict=True)):
        came = flow.runner.run(Request([row], 1, seed=seed + k, label=np.zeros(1, np.int64))).states
        noise = torch.from_numpy(native.normal(seed + k, 0, 1, 192, 0).reshape(1, 3, 8, 8))
        with torch.no_grad():
            expected = scheduler.step(unet(noise, timestep).sample, timestep, noise).prev_sample
        assert apart(torch.from_numpy(came), expected) < 2e-6, f"row {k}, seed {seed}"


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_teacher_clamps_as_ddim_does(monkeypatch, tmp_path, rng, prediction_type, spacing):
    """Whatever is predicted, with a range of its own, an end below one, and fresh noise."""
    seed = int(rng.integers(2**32))
    config = {"prediction_type": prediction_type, "timestep_spacing": spacing, "set_alpha_to_one": False}
    config |= {"clip_sample": True, "clip_sample_range": float(rng.uniform(0.1, 2.0))}
    DDIMPipeline(small_unet(int(rng.integers(2**31))), DDIMScheduler(**config)).save_pretrained(tmp_path)
    for eta in (0.0, 1.0):
        expected = of_ddimpipeline(monkeypatch, tmp_path, 2, seed, 7, eta)
        states = load_teacher(tmp_path).sample(2, steps=7, seed=seed, solver="ddpm" if eta else "ddim").states
        came = (states / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)
        assert abs(came - expected).max() < 2e-5, f"eta {eta}, {config}, seed {seed}"


def test_a_teacher_inpaints(rng):
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:5] = True
    unet = small_unet()
    for clip_sample in (True, False):
        flow = Teacher(unet, ddim_scheduler(set_alpha_to_one=False, clip_sample=clip_sample), "none")
        came = flow.inpaint(image, mask, steps=5).images[0]
        assert np.array_equal(came[~mask], image[~mask])
        assert not np.array_equal(came[mask], image[mask])


def test_a_teacher_knows_its_classes(tmp_path):
    DDIMPipeline(small_unet(num_class_embeds=3), ddim_scheduler()).save_pretrained(tmp_path)
    flow = load_teacher(tmp_path)
    assert flow.spec.network.classes == 3
    pictures = flow.sample(2, steps=2, label=[0, 2]).states
    assert abs(pictures - flow.sample(2, steps=2, label=0).states)[1].max() > 1e-3
    with pytest.raises(InvalidInput, match="label is None; this network was only trained with labels"):
        flow.sample(steps=2)


def test_a_folder_without_subfolders(ddpm_folder, tmp_path):
    """google/ddpm-cifar10-32 keeps all files at its root."""
    for path in ddpm_folder.rglob("*.*"):
        shutil.copy(path, tmp_path / path.name)
    flat, nested = (load_teacher(folder, clip_sample=False) for folder in (tmp_path, ddpm_folder))
    assert np.array_equal(flat.sample(steps=2).states, nested.sample(steps=2).states)
    assert flat.identity == nested.identity


def test_what_is_no_teacher_is_refused(ddpm_folder, tmp_path):
    with pytest.raises(InvalidArtefact, match="nothing is no folder; expected a pipeline that diffusers saved"):
        load_teacher(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="device is 'tpu'; a teacher of diffusers runs on cpu or cuda"):
        load_teacher(ddpm_folder, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="sees no GPU; expected one, or cpu"):
            load_teacher(ddpm_folder, device="cuda")
    flow = load_teacher(ddpm_folder, clip_sample=False)
    with pytest.raises(InvalidInput, match="solver is 'heun'; expected ddim or ddpm"):
        flow.sample(steps=2, solver="heun")
    with pytest.raises(InvalidInput, match="resamples is 2; expected 1: the rows are the scheduler's own"):
        flow.plan(4, resamples=2)
    with pytest.raises(InvalidInput, match="grid is 'cosine'; expected none"):
        flow.sample(steps=2, grid="cosine")
    with pytest.raises(InvalidInput, match="out_channels is 6; expected in_channels=3"):
        Teacher(small_unet(out_channels=6), ddim_scheduler(), "none")
    with pytest.raises(InvalidInput, match="class_embed_type is 'identity'; expected None"):
        Teacher(small_unet(class_embed_type="identity"), ddim_scheduler(), "none")
    unet = small_unet()
    unet.register_to_config(sample_size=None)
    with pytest.raises(InvalidInput, match="sample_size is None; expected the size of a picture"):
        Teacher(unet, ddim_scheduler(), "none")
    with pytest.raises(InvalidInput, match="thresholding is True: how far it clamps depends on the picture"):
        Teacher(small_unet(), ddim_scheduler(thresholding=True), "none")
    folder = shutil.copytree(ddpm_folder, tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InvalidArtefact, match=r"is a pickle, and pyflow loads none; expected \.safetensors"):
        load_teacher(folder, clip_sample=False)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", {"block_out_channels": [16, 32]}),
        ("unet/config.json", {"down_block_types": ["Foo", "Bar"]}),
        ("unet/config.json", {"norm_num_groups": 7}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "foo"}),
        ("model_index.json", {"unet": ["diffusers", "Foo"]}),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_one_sentence(ddpm_folder, tmp_path, file, change, capsys):
    folder = shutil.copytree(ddpm_folder, tmp_path / "misfit")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    assert main(["sample", str(folder), "--out", str(tmp_path / "x.png"), "--count", "1"]) == 2
    assert "is no pipeline that diffusers opens (" in capsys.readouterr().err


def test_a_teacher_is_told_apart_by_its_schedule(ddpm_folder, tmp_path):
    folder = shutil.copytree(ddpm_folder, tmp_path / "other")
    config = folder / "scheduler" / "scheduler_config.json"
    as_it_was = json.loads(config.read_text())
    identities = []
    for change in ({}, {"_diffusers_version": "0.1"}, {"beta_end": 0.01}):
        config.write_text(json.dumps({**as_it_was, **change}))
        identities.append(load_teacher(folder, clip_sample=False).identity)
    assert identities[0] == identities[1] == load_teacher(ddpm_folder, clip_sample=False).identity
    assert identities[0] != identities[2]
