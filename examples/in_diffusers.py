"""A pyflow checkpoint in diffusers: export it as a pipeline's folder, load that, sample with a callback.

Usage: python examples/in_diffusers.py [CHECKPOINT]; without one, this takes a tiny network that nobody trained.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from pyflow import checkpoint
from pyflow.adapters import PyflowPipeline, PyflowScheduler
from pyflow.models import build
from pyflow.spec import Spec, UNet


def tiny_checkpoint(folder: Path) -> Path:
    spec = Spec(UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), attention=(4,), classes=3), null_label=True)
    checkpoint.save(folder, build(spec.network), spec)
    return folder


def told(pipe: PyflowPipeline, step: int, timestep: torch.Tensor, state: dict[str, Any]) -> dict[str, Any]:
    print(f"step {step}: timestep {timestep:.0f}, deviation {state['latents'].std():.3f}")
    return state


with tempfile.TemporaryDirectory() as folder:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny_checkpoint(Path(folder) / "checkpoint")
    PyflowPipeline.from_checkpoint(source).save_pretrained(Path(folder) / "pipeline")

    pipe = PyflowPipeline.from_pretrained(Path(folder) / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    labelled = {"class_labels": 1} if pipe.unet.spec.network.classes else {}
    call = {"batch_size": 4, "num_inference_steps": 4, "output_type": "pt", **labelled}
    pictures = pipe(generator=torch.Generator().manual_seed(3), callback_on_step_end=told, **call).images
    print("pictures", tuple(pictures.shape))

    # Schedulers change as anywhere in diffusers: pyflow's solvers, or diffusers' own flow matching.
    pipe.scheduler = PyflowScheduler.from_config(pipe.scheduler.config, solver="heun")
    pipe(generator=torch.Generator().manual_seed(3), **call)
    if (pipe.unet.spec.path, pipe.unet.spec.prediction) == ("linear", "velocity"):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        pipe(generator=torch.Generator().manual_seed(3), **call)
