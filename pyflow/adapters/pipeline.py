"""A pyflow checkpoint as a pipeline of diffusers: what DDIMPipeline is to a UNet2DModel."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..core import VELOCITY
from ..errors import InvalidInput, NotFinite
from ..spec import Spec, refuse_other_inputs
from .convention import safe_arguments
from .network import PyflowNetwork
from .scheduler import PyflowScheduler

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]


class PyflowPipeline(DiffusionPipeline):
    """unet: a PyflowNetwork. scheduler: a PyflowScheduler, or diffusers' own flow matching for a linear velocity."""

    __module__ = "pyflow.adapters"  # as its parts
    model_cpu_offload_seq = "unet"

    def __init__(self, unet: PyflowNetwork, scheduler: Any) -> None:
        super().__init__()
        if not isinstance(unet, PyflowNetwork):
            raise InvalidInput(
                f"unet is a {type(unet).__name__}; expected a PyflowNetwork: load_teacher opens a UNet2DModel"
            )
        refuse_other_inputs(unet.spec)
        if unet.spec.network.sees_mask:
            raise InvalidInput(
                "the network sees the mask; expected one that does not: this pipeline has no picture to keep, "
                "inpaint with pyflow.load(CHECKPOINT).inpaint"
            )
        _refuse_stranger(unet.spec, scheduler)
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> "PyflowPipeline":
        """A pipeline of a pyflow checkpoint, with the checkpoint's own solver."""
        unet = PyflowNetwork.from_checkpoint(folder)
        spec = unet.spec
        return cls(unet, PyflowScheduler(path=spec.path, prediction=spec.prediction, solver=spec.solver))

    @classmethod
    def from_pretrained(cls, folder: Any, **arguments: Any) -> Any:
        return super().from_pretrained(folder, **safe_arguments(folder, arguments))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """class_labels: one for all, one a picture, or None. guidance_scale: 1 is none. latents: the first noise.

        output_type: pil, np (float32 NHWC in 0..1), pt (NCHW in 0..1), or latent: the network's own values.
        callback_on_step_end(pipeline, step, timestep, {"latents": state}) may return a dict with other latents.
        """
        spec = self.unet.spec
        _refuse_stranger(spec, self.scheduler)
        if not set(callback_on_step_end_tensor_inputs) <= {"latents"}:
            raise InvalidInput(
                f"callback_on_step_end_tensor_inputs is {callback_on_step_end_tensor_inputs}; expected only latents"
            )
        self._check(batch_size, class_labels, guidance_scale, output_type)
        shape = (batch_size, *spec.network.shape)
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        elif latents.shape != shape:
            raise InvalidInput(f"latents has shape {tuple(latents.shape)}; expected {shape}")
        x = latents.to(device, self.unet.dtype)
        labels = self._labels(class_labels, batch_size)
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        ends = getattr(self.scheduler, "next_timesteps", [None] * len(timesteps))
        for k, timestep in enumerate(self.progress_bar(timesteps)):
            p = self._predict(x, timestep, ends[k], labels, guidance_scale)
            x = self.scheduler.step(p, timestep, x, generator=generator).prev_sample
            if callback_on_step_end is not None:
                x = (callback_on_step_end(self, k, timestep, {"latents": x}) or {}).get("latents", x)
        if not x.isfinite().all():
            raise NotFinite(
                f"a picture holds a NaN or an infinity after {len(timesteps)} rows at guidance_scale "
                f"{guidance_scale:g}: the weights are broken or the guidance is too high"
            )
        images = self._images(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self, x: Tensor, timestep: Tensor, end: Tensor | None, labels: Tensor | None, guidance: float
    ) -> Tensor:
        if labels is None or guidance == 1.0:
            return self.unet(x, timestep, class_labels=labels, next_timestep=end).sample
        both = torch.cat([labels, torch.full_like(labels, self.unet.spec.network.classes)])
        p = self.unet(torch.cat([x, x]), timestep, class_labels=both, next_timestep=end).sample
        cond, uncond = p.chunk(2)
        return uncond + guidance * (cond - uncond)

    def _images(self, x: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x
        pictures = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pictures
        arrays = pictures.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays

    def _labels(self, class_labels: int | Sequence[int] | Tensor | None, batch: int) -> Tensor | None:
        classes = self.unet.spec.network.classes
        if class_labels is None:
            return None
        labels = torch.as_tensor(class_labels, device=self._execution_device)
        if labels.is_floating_point() or labels.shape not in ((), (batch,)):
            raise InvalidInput(f"class_labels is {class_labels!r}; expected one integer, or {batch}: one a picture")
        if not ((labels >= 0) & (labels < classes)).all():
            expected = f"0 to {classes - 1}" if classes else "None, this network knows no classes"
            raise InvalidInput(f"class_labels is {class_labels!r}; expected {expected}")
        return labels.long().expand(batch)

    def _check(self, batch_size: int, class_labels: Any, guidance: float, output_type: str) -> None:
        spec = self.unet.spec
        if batch_size < 1:
            raise InvalidInput(f"batch_size is {batch_size}; expected 1 or more")
        if not 0 <= guidance <= 100:
            raise InvalidInput(f"guidance_scale is {guidance!r}; expected a number from 0 to 100, 1 for none")
        if guidance != 1.0 and (class_labels is None or not spec.null_label):
            why = "class_labels is None" if class_labels is None else "this network knows no null label"
            raise InvalidInput(f"guidance_scale is {guidance} and {why}; expected 1 for this call")
        kinds = OUTPUT_TYPES if len(spec.network.shape) == 3 else OUTPUT_TYPES[-1:]
        if output_type not in kinds:
            raise InvalidInput(
                f"output_type is {output_type!r} for states of shape {spec.network.shape}; "
                f"expected one of {', '.join(kinds)}"
            )


def _refuse_stranger(spec: Spec, scheduler: Any) -> None:
    """A scheduler that takes the prediction for something else would make noise of it, without a word."""
    if isinstance(scheduler, PyflowScheduler):
        read = scheduler.config.path, scheduler.config.prediction
    elif isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        read = "linear", VELOCITY
    else:
        raise InvalidInput(
            f"scheduler is a {type(scheduler).__name__}; expected a PyflowScheduler with path={spec.path!r} and "
            f"prediction={spec.prediction!r}, or a FlowMatchEulerDiscreteScheduler for a velocity on the linear path"
        )
    if read != (spec.path, spec.prediction):
        raise InvalidInput(
            f"the scheduler reads a {read[1]} on the {read[0]} path; expected {spec.prediction} on {spec.path}, "
            "what this network says"
        )
