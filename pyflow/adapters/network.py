"""A pyflow network as a model of diffusers, called as UNet2DModel is."""

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from .. import checkpoint
from ..errors import InvalidArtefact, InvalidInput
from ..models import build
from ..spec import Spec
from .convention import refuse_unsafe_save, safe_arguments, time_of, turned


class PyflowNetwork(ModelMixin, ConfigMixin):
    """`model(sample, timestep, class_labels=...).sample`; a velocity comes in diffusers' sign.

    `spec` is pyflow's, as JSON. in_channels and sample_size follow from it: pipelines look for them in the config.
    """

    __module__ = "pyflow.adapters"  # what a saved model_index.json names: files in here may move

    @register_to_config
    def __init__(
        self, spec: dict[str, Any], in_channels: int | None = None, sample_size: list[int] | None = None
    ) -> None:
        super().__init__()
        self.spec = Spec.from_json(spec, "the config's spec")
        self.net = build(self.spec.network)
        channels, *size = self.spec.network.shape
        self.register_to_config(in_channels=channels + getattr(self.spec.network, "extra", 0), sample_size=size)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        next_timestep: Tensor | float | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """timestep: one for all, or one a picture. class_labels None: the null label.

        next_timestep: where the step ends, for a network with two times; without it the velocity at `timestep` comes.
        """
        if torch.finfo(sample.dtype).bits < 32:
            raise InvalidInput(
                f"sample has dtype {sample.dtype}, in which times are too coarse; expected float32: "
                "keep the model in float32 and call it under torch.autocast"
            )
        s = _times("timestep", timestep, sample)
        t = s if next_timestep is None else _times("next_timestep", next_timestep, sample)
        p = turned(self.spec.prediction, self.net(sample, s, t, self._labels(class_labels, sample)))
        return UNet2DOutput(sample=p) if return_dict else (p,)

    def _labels(self, class_labels: Tensor | None, sample: Tensor) -> Tensor:
        classes = self.spec.network.classes
        if class_labels is not None:
            return class_labels
        if classes and not self.spec.null_label:
            raise InvalidInput(
                f"class_labels is None; this network was only trained with labels, expected 0 to {classes - 1}"
            )
        return torch.full((len(sample),), classes, device=sample.device)

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> "PyflowNetwork":
        model, spec = checkpoint.load(Path(folder))
        network = cls(spec=spec.to_json())
        network.net.load_state_dict(model.state_dict())
        return network.eval()

    def to_checkpoint(self, folder: str | Path) -> None:
        """Publish the weights as a pyflow checkpoint, which `pyflow.load` and `pyflow export` read."""
        checkpoint.save(Path(folder), self.net, self.spec)

    @classmethod
    def from_pretrained(cls, folder: Any, **arguments: Any) -> Any:
        told = arguments.pop("output_loading_info", False)
        arguments = safe_arguments(folder, arguments)
        network, info = super().from_pretrained(folder, **arguments, output_loading_info=True)
        missing = info.get("missing_keys")
        if missing:  # diffusers warns, and goes on with weights that nobody trained
            raise InvalidArtefact(f"{folder} lacks the weights {', '.join(sorted(missing))}; save it again")
        return (network, info) if told else network

    @functools.wraps(ModelMixin.save_pretrained)  # a pipeline reads in the signature what it may hand on
    def save_pretrained(self, *arguments: Any, **named: Any) -> None:
        refuse_unsafe_save(super().save_pretrained, *arguments, **named)
        super().save_pretrained(*arguments, **named)


def _times(name: str, timestep: Tensor | float, sample: Tensor) -> Tensor:
    """pyflow's times, one a picture; taken in float64, so that they round to float32 as the plan's do."""
    told = torch.as_tensor(timestep).double()
    if told.ndim > 1 or told.numel() not in (1, len(sample)):
        raise InvalidInput(
            f"{name} has shape {tuple(told.shape)}; expected one number, or one for each of {len(sample)}"
        )
    return time_of(told).to(sample.device, sample.dtype).expand(len(sample))
