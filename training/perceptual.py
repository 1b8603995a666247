"""LPIPS between pictures, where its package is installed and its weights lie in a safetensors file.

The package would fetch and read its weights as pickles, so it is only given the network's shape here.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from pyflow.checkpoint import load_file
from pyflow.errors import BackendUnavailable

WEIGHTS = "PYFLOW_LPIPS"
MADE = "safetensors.torch.save_file({k: v.clone() for k, v in lpips.LPIPS(net='vgg').state_dict().items()}, FILE)"
_loaded: dict[str, nn.Module] = {}


def load(device: torch.device) -> nn.Module:
    """The distance with VGG16's features, its weights from the file that PYFLOW_LPIPS names; loaded once."""
    if str(device) in _loaded:
        return _loaded[str(device)]
    try:
        import lpips
    except ImportError as error:
        raise BackendUnavailable(
            f"lpips > 0 needs the packages lpips and torchvision ({error}); install them, or set lpips to 0"
        ) from error
    net: nn.Module = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    try:
        net.load_state_dict(load_file(Path(os.environ.get(WEIGHTS, ""))))
    except (OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise BackendUnavailable(
            f"lpips > 0 needs {WEIGHTS} to name a safetensors file of its weights ({told}); pyflow loads no pickle: "
            f"make the file once, elsewhere, with {MADE}, or set lpips to 0"
        ) from error
    _loaded[str(device)] = net.to(device).eval().requires_grad_(False)
    return _loaded[str(device)]


def lpips_distance(images: Tensor, others: Tensor) -> Tensor:
    """LPIPS (Zhang et al. 2018) a sample, of pictures in -1..1; grey ones are shown as colours."""
    images, others = (each.float().expand(-1, 3, -1, -1) for each in (images, others))
    return load(images.device)(images, others).flatten(1).mean(1)
