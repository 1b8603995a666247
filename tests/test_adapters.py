"""pyflow inside diffusers: the network, the scheduler and the pipeline, held to pyflow's own loop bit for bit."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pyflow-engine[diffusers]'")

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny import POINTS, UNET, network, save

import pyflow
from pyflow import checkpoint, core, native
from pyflow.adapters import PyflowNetwork, PyflowPipeline, PyflowScheduler
from pyflow.errors import InvalidArtefact, InvalidInput, NotFinite
from pyflow.spec import Spec

BATCH, LABELS, SEED = 3, [0, 2, 1], 5
TRAINED = {
    "euler": Spec(UNET, null_label=True),
    "euler, two times": Spec(dataclasses.replace(UNET, times=2), null_label=True),
    "heun": Spec(UNET, solver="heun", null_label=True),
    "heun, noise": Spec(UNET, "vp-cosine", "noise", "heun", null_label=True),
    "ab2": Spec(UNET, solver="ab2", null_label=True),
    "ddim, noise": Spec(UNET, "vp-linear", "noise", "ddim", null_label=True),
    "ddim, image": Spec(UNET, "vp-cosine", "image", "ddim", null_label=True),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def quiet(pipe: PyflowPipeline) -> PyflowPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pyflow_noise(shape: tuple[int, ...], row: int = 0) -> torch.Tensor:
    return torch.from_numpy(native.normal(SEED, 0, BATCH, int(np.prod(shape)), row).reshape(BATCH, *shape))


@pytest.fixture
def pipe(tiny_checkpoint) -> PyflowPipeline:
    return quiet(PyflowPipeline.from_checkpoint(tiny_checkpoint))


@pytest.fixture(scope="module")
def saved(tiny_checkpoint, tmp_path_factory):
    """A pipeline's folder in diffusers' layout; to be read only."""
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    PyflowPipeline.from_checkpoint(tiny_checkpoint).save_pretrained(folder)
    return folder


# ---- the same picture as pyflow's loop
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("spec", TRAINED.values(), ids=TRAINED.keys())
def test_a_pipeline_is_the_loop_bit_for_bit(tmp_path, spec, guidance):
    save(tmp_path / "checkpoint", spec)
    pipe = quiet(PyflowPipeline.from_checkpoint(tmp_path / "checkpoint"))
    start = pyflow_noise(UNET.shape)
    for steps in (1, 5):
        named = {"num_inference_steps": steps, "guidance_scale": guidance, "class_labels": LABELS}
        came = pipe(BATCH, latents=start, output_type="latent", **named).images
        expected = pyflow.load(tmp_path / "checkpoint").sample(
            BATCH, steps=steps, guidance=guidance, label=LABELS, seed=SEED
        )
        assert np.array_equal(came.numpy(), expected.states)


def test_points_are_latents(tmp_path):
    pipe = quiet(PyflowPipeline.from_checkpoint(save(tmp_path / "points", Spec(POINTS))))
    named = {"class_labels": 1, "num_inference_steps": 2, "latents": pyflow_noise((2,))}
    came = pipe(BATCH, output_type="latent", **named).images
    expected = pyflow.load(tmp_path / "points").sample(BATCH, steps=2, label=1, seed=SEED).states
    assert np.array_equal(came.numpy(), expected)
    with pytest.raises(InvalidInput, match=r"output_type is 'pil' for states of shape \(2,\); expected one of latent"):
        pipe(BATCH, **named)


@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.3), ("ddpm", 0.0), ("renoise", 0.0)])
def test_noise_of_a_row_comes_from_the_generator(solver, eta):
    scheduler = PyflowScheduler("vp-cosine", "noise", solver, eta=eta)
    scheduler.set_timesteps(4)
    drawn, expected = seeded(), seeded()
    x = y = torch.randn(2, 1, 4, 4, generator=drawn)
    torch.randn(2, 1, 4, 4, generator=expected)
    for row, timestep in zip(scheduler.plan, scheduler.timesteps):
        p = torch.sin(x)
        noise = torch.randn(x.shape, generator=expected) if row.n else None
        y, _ = core.fused_step(row, x=y, cond=p, noise=noise)
        x = scheduler.step(p, timestep, x, generator=drawn).prev_sample
        assert torch.equal(x, y)
    assert sum(row.n > 0 for row in scheduler.plan) == 3


def test_a_list_of_generators_makes_pictures_that_do_not_depend_on_their_batch(pipe):
    pipe.scheduler = PyflowScheduler.from_config(pipe.scheduler.config, solver="renoise")
    named = {"num_inference_steps": 3, "output_type": "latent"}
    both = pipe(2, [torch.Generator().manual_seed(k) for k in (7, 8)], class_labels=[0, 1], **named).images
    alone = pipe(1, [torch.Generator().manual_seed(8)], class_labels=[1], **named).images
    assert (both[1] - alone[0]).abs().max() < 1e-5


def test_two_runs_of_one_pipeline_are_equal(pipe):
    pipe.scheduler = PyflowScheduler.from_config(pipe.scheduler.config, solver="ab2")
    first, second = (pipe(2, seeded(), 3, class_labels=1, output_type="np").images for _ in range(2))
    assert np.array_equal(first, second)


# ---- what a user of diffusers expects
def test_output_types(pipe):
    kinds = {kind: pipe(2, seeded(), 2, class_labels=1, output_type=kind).images for kind in ("pil", "np", "pt")}
    latent = pipe(2, seeded(), 2, class_labels=1, output_type="latent", return_dict=False)[0]
    assert kinds["np"].shape == (2, 8, 8, 1)
    assert kinds["np"].dtype == np.float32
    assert kinds["pt"].shape == (2, 1, 8, 8)
    assert np.array_equal(kinds["np"], kinds["pt"].permute(0, 2, 3, 1).numpy())
    assert torch.equal(kinds["pt"], (latent / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(np.asarray(kinds["pil"][1]), (kinds["np"][1, :, :, 0] * 255).round().astype(np.uint8))


def test_callback_on_step_end(pipe):
    seen = []

    def halve(given, step, timestep, state):
        assert given is pipe
        seen.append((step, float(timestep)))
        return {"latents": state["latents"] / 2}

    named = {"class_labels": 1, "output_type": "latent", "callback_on_step_end_tensor_inputs": ["latents"]}
    plain = pipe(1, seeded(), 1, **named).images
    assert torch.equal(pipe(1, seeded(), 1, callback_on_step_end=halve, **named).images, plain / 2)
    assert seen == [(0, 1000.0)]
    pipe(1, seeded(), 4, callback_on_step_end=halve, **named)
    assert seen[1:] == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)]
    assert torch.equal(pipe(1, seeded(), 1, callback_on_step_end=lambda *_: None, **named).images, plain)


def test_a_network_is_called_as_unet2dmodel_is(tiny_checkpoint):
    net = PyflowNetwork.from_checkpoint(tiny_checkpoint)
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    both = net(x, torch.tensor([250.0, 750.0]), class_labels=labels).sample
    assert torch.equal(net(x, 250, labels, return_dict=False)[0], net(x, torch.tensor(250.0), labels).sample)
    for k, timestep in enumerate((250, 750)):
        assert torch.allclose(net(x[k : k + 1], timestep, labels[k : k + 1]).sample, both[k : k + 1], atol=1e-6)
    t = torch.full((2,), 0.75)
    assert torch.equal(net(x, 250.0, labels).sample, -net.net(x, t, t, labels)), "a velocity has diffusers' sign"
    assert torch.equal(net(x, 250.0).sample, net(x, 250.0, torch.tensor([3, 3])).sample), "None is the null label"
    assert (net.config.in_channels, net.config.sample_size) == (1, [8, 8])


def test_add_noise_is_the_path():
    image, noise = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    scheduler = PyflowScheduler("vp-linear", "noise", "ddim")
    noisy = scheduler.add_noise(image, noise, torch.tensor([0, 300, 1000]))
    assert torch.equal(noisy[0], image[0])
    for k, t in ((1, 0.7), (2, 0.0)):
        assert torch.allclose(noisy[k], core.VP_LINEAR.mix(image[k], noise[k], t), atol=1e-6)


def test_a_run_may_begin_in_the_middle():
    scheduler = PyflowScheduler(solver="heun")
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4)
    middle = scheduler.timesteps[3]
    assert scheduler.timesteps.tolist() == [1000, 750, 750, 500, 500, 250, 250, 0]
    came = scheduler.step(x, middle, x).prev_sample
    assert scheduler.step_index == 5, "the row of this timestep that needs no prediction before it"
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(4)
    assert torch.equal(scheduler.step(x, middle, x, return_dict=False)[0], came)


def test_half_states_are_stepped_in_float32():
    x = torch.randn(1, 8).half()
    scheduler = PyflowScheduler("vp-cosine", "noise", "ddim")
    scheduler.set_timesteps(3)
    came = scheduler.step(x, 1000, x).prev_sample
    assert came.dtype == torch.float16
    assert torch.equal(came, core.fused_step(scheduler.plan[0], x=x.float(), cond=x.float())[0].half())


# ---- folders
def test_a_saved_pipeline_makes_the_same_pictures(pipe, saved):
    assert sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((saved / "model_index.json").read_text())
    assert index["unet"] == ["pyflow.adapters", "PyflowNetwork"], "saved folders name nothing that may move"
    loaded = quiet(PyflowPipeline.from_pretrained(saved))
    named = {"num_inference_steps": 4, "class_labels": 2, "guidance_scale": 2.0, "output_type": "np"}
    assert np.array_equal(loaded(2, seeded(), **named).images, pipe(2, seeded(), **named).images)


def test_a_network_goes_back_to_a_checkpoint(saved, tiny_checkpoint, tmp_path):
    PyflowNetwork.from_pretrained(saved, subfolder="unet").to_checkpoint(tmp_path / "back")
    assert checkpoint.load_spec(tmp_path / "back") == checkpoint.load_spec(tiny_checkpoint)
    assert checkpoint.weights_sha256(tmp_path / "back") == checkpoint.weights_sha256(tiny_checkpoint)


def test_a_scheduler_keeps_its_grid(tmp_path):
    PyflowScheduler("vp-cosine", "noise", "ddim", [0.0, 0.3, 1.0], 0.5).save_pretrained(tmp_path)
    scheduler = PyflowScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps()
    assert scheduler.plan == core.ddim(core.VP_COSINE, "noise", (0.0, 0.3, 1.0), 0.5)
    assert scheduler.num_inference_steps == 2


def test_no_pickle_is_written(pipe, tmp_path):
    with pytest.raises(InvalidInput, match="safe_serialization is False; expected True: pyflow writes no pickle"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("loader", [PyflowPipeline, PyflowNetwork])
def test_no_pickle_is_read(saved, tmp_path, loader):
    folder = shutil.copytree(saved if loader is PyflowPipeline else saved / "unet", tmp_path / "folder")
    with pytest.raises(InvalidInput, match="use_safetensors is False; expected True"):
        loader.from_pretrained(folder, use_safetensors=False)
    (weights,) = folder.rglob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InvalidArtefact, match=r"diffusion_pytorch_model.bin is a pickle, and pyflow loads none"):
        loader.from_pretrained(folder)


def test_missing_weights_are_an_error(saved, tmp_path):
    folder = shutil.copytree(saved / "unet", tmp_path / "unet")
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["net.leave.bias"]
    save_file(tensors, weights, {"format": "pt"})
    for sparing in (True, False):
        with pytest.raises((InvalidArtefact, ValueError), match=r"net\.leave\.bias"):
            PyflowNetwork.from_pretrained(folder, low_cpu_mem_usage=sparing)


def test_importing_pyflow_imports_no_diffusers():
    seen = "import sys, pyflow; print('diffusers' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_without_diffusers_the_way_out_is_named():
    hidden = "import sys; sys.modules['diffusers'] = None; import pyflow.adapters"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert "BackendUnavailable: pyflow.adapters needs diffusers and torch" in done.stderr
    assert 'pip install "pyflow-engine[diffusers]"' in done.stderr


# ---- refused
WRONG_CALLS = {
    "batch": ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    "steps": ({"num_inference_steps": 0}, "steps is 0; expected 1 or more"),
    "half a step": ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5; expected an integer"),
    "label": ({"class_labels": 3}, "class_labels is 3; expected 0 to 2"),
    "labels": ({"class_labels": [0, 1, 2]}, "expected one integer, or 2: one a picture"),
    "guidance": ({"guidance_scale": -1.0}, "guidance_scale is -1.0; expected a number from 0 to 100"),
    "no label": ({"guidance_scale": 2.0, "class_labels": None}, "class_labels is None; expected 1 for this call"),
    "output": ({"output_type": "jpeg"}, "output_type is 'jpeg' .* expected one of pil, np, pt, latent"),
    "latents": ({"latents": torch.zeros(1, 1, 8, 8)}, r"latents has shape \(1, 1, 8, 8\); expected \(2, 1, 8, 8\)"),
    "tensors": ({"callback_on_step_end_tensor_inputs": ["image"]}, "expected only latents"),
}


@pytest.mark.parametrize(("wrong", "sentence"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_a_wrong_call_is_refused(pipe, wrong, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        pipe(**{"batch_size": 2, "num_inference_steps": 1, "class_labels": 1, **wrong})


def test_a_wrong_scheduler_is_refused(pipe):
    for scheduler, sentence in (
        (DDIMScheduler(), "scheduler is a DDIMScheduler; expected a PyflowScheduler with path='linear'"),
        (PyflowScheduler("vp-cosine", "noise"), "reads a noise on the vp-cosine path; expected velocity on linear"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            PyflowPipeline(pipe.unet, scheduler)
        pipe.scheduler = scheduler
        with pytest.raises(InvalidInput, match=sentence):
            pipe()
    noise = PyflowNetwork(Spec(UNET, "vp-cosine", "noise", "ddim").to_json())
    with pytest.raises(InvalidInput, match="the scheduler reads a velocity on the linear path; expected noise"):
        PyflowPipeline(noise, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(InvalidInput, match="unet is a UNet2DModel; expected a PyflowNetwork: load_teacher"):
        PyflowPipeline(UNet2DModel(8, block_out_channels=(32, 32, 32, 32)), PyflowScheduler())


def test_a_network_without_null_label_wants_labels(tmp_path):
    pipe = quiet(PyflowPipeline.from_checkpoint(save(tmp_path / "student", Spec(UNET))))
    with pytest.raises(InvalidInput, match="class_labels is None; this network was only trained with labels"):
        pipe(num_inference_steps=1)
    with pytest.raises(InvalidInput, match="this network knows no null label; expected 1 for this call"):
        pipe(num_inference_steps=1, class_labels=1, guidance_scale=2.0)


def test_a_network_that_sees_the_mask_is_refused(tmp_path):
    folder = save(tmp_path / "sees", Spec(dataclasses.replace(UNET, extra=2), null_label=True))
    with pytest.raises(InvalidInput, match=r"^the network sees the mask; expected one that does not: .*\.inpaint$"):
        PyflowPipeline.from_checkpoint(folder)


def test_a_network_refuses_times_that_do_not_fit(tiny_checkpoint):
    net = PyflowNetwork.from_checkpoint(tiny_checkpoint)
    with pytest.raises(InvalidInput, match=r"timestep has shape \(3,\); expected one number, or one for each of 2"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(3))
    with pytest.raises(InvalidInput, match=r"torch\.float16, in which times are too coarse; .* torch\.autocast"):
        net(torch.zeros(2, 1, 8, 8).half(), 0)


def test_a_nan_never_leaves_a_pipeline(pipe):
    with torch.no_grad():
        pipe.unet.net.leave.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="a picture holds a NaN or an infinity after 2 rows"):
        pipe(num_inference_steps=2, class_labels=1)


def test_wrong_steps_are_refused():
    scheduler, x = PyflowScheduler(solver="ab2"), torch.zeros(1, 4)
    with pytest.raises(InvalidInput, match="step 1 of a plan of 0 rows; expected set_timesteps before each run"):
        scheduler.step(x, 1000, x)
    scheduler.set_timesteps(2)
    with pytest.raises(InvalidInput, match="timestep is 999; expected 1000 at row 1"):
        scheduler.step(x, 999, x)
    for timestep in scheduler.timesteps:
        scheduler.step(x, timestep, x)
    scheduler.set_timesteps(2)
    scheduler.set_begin_index(1)
    with pytest.raises(InvalidInput, match="row 2 of ab2 needs the prediction before it"):
        scheduler.step(x, 500, x)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"path": "curved"}, "path is 'curved'; expected one of linear"),
        ({"prediction": "score"}, "prediction is 'score'; expected one of velocity"),
        ({"solver": "rk4"}, "solver is 'rk4'; expected one of euler"),
        ({"grid": "karras"}, "grid is 'karras'; expected one of uniform"),
        ({"eta": 1.0}, "eta is 1.0 and solver is 'euler'; expected solver='ddim'"),
    ],
)
def test_a_wrong_plan_is_refused(wrong, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        PyflowScheduler(**wrong)


def test_a_grid_of_its_own_tells_the_steps():
    scheduler = PyflowScheduler(grid=[0.0, 0.5, 1.0])
    with pytest.raises(InvalidInput, match="num_inference_steps is 3; expected 2"):
        scheduler.set_timesteps(3)


def test_a_spec_that_is_none_is_named():
    with pytest.raises(InvalidArtefact, match="the config's spec"):
        PyflowNetwork({"network": {"kind": "unet"}, "sampler": "x"})
    assert PyflowNetwork(Spec(UNET).to_json()).state_dict().keys() == {
        f"net.{name}" for name in network(UNET, 0).state_dict()
    }
