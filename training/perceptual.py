"""LPIPS between pictures, where its package and its trunk's weights are installed."""

from functools import cache

import torch
from torch import Tensor, nn

from pyflow.errors import BackendUnavailable


@cache
def _lpips(device: torch.device) -> nn.Module:
    try:
        import lpips

        return lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    except ImportError as error:
        raise BackendUnavailable(
            f"lpips > 0 needs the packages lpips and torchvision ({error}); install them"
        ) from error
    except OSError as error:
        raise BackendUnavailable(
            f"lpips > 0 needs the weights of torchvision's VGG16, which could not be fetched ({error}); set lpips to 0"
        ) from error


def lpips_distance(images: Tensor, others: Tensor) -> Tensor:
    """LPIPS (Zhang et al. 2018) a sample, of pictures in -1..1; grey ones are shown as colours."""
    images, others = (each.float().expand(-1, 3, -1, -1) for each in (images, others))
    return _lpips(images.device)(images, others).flatten(1).mean(1)
