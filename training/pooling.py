"""Targets with less chance in them: what a batch as a whole says of where a state may have come from."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pyflow.core import Path

from .batch import Batch, over

SMALLEST_SIGMA = 2e-3  # below it a state tells its own image, and float32 could not tell the others' distances


def pooled(batch: Batch, path: Path, t: Tensor) -> Batch:
    """The batch with each sample's image and noise replaced by their means over all images of the batch that might have
    led to the same x_t (the stable target field of Xu et al. 2023): E[image | x_t, the batch] as a softmax of
    -|x_t - alpha image|^2 / (2 sigma^2), which is attention. x_t stays what it was. Given the batch it is chance which
    image led to a state, so the targets have no bias, and less variance. A part of a batch has the pool of the whole.

    After 3000 steps of lsd on the checkerboard, KL at 1, 2, 4, 8 and 16 steps is .160/.151/.087/.066/.052 with it.
    """
    alpha, sigma = over(path.alpha(t), t[:, None]), over(path.sigma(t), t[:, None])
    near = sigma.clamp(min=SMALLEST_SIGMA)
    image, noise, pool = batch.image.flatten(1), batch.noise.flatten(1), batch.pool.flatten(1)
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        x = alpha * image + sigma * noise
        query = torch.cat([x * alpha / near**2, -(alpha**2) / (2 * near**2)], dim=1)
        key = torch.cat([pool, pool.square().sum(1, keepdim=True)], dim=1)
        value = F.pad(pool, (0, 1))  # as wide as the others, which the fused kernel asks for: 3.4 ms and not 21
        query, key, value = query[None, None], key[None, None], value[None, None]  # one head, for the same reason
        mean = F.scaled_dot_product_attention(query, key, value, scale=1.0)[0, 0, :, :-1]
        mean = torch.where(sigma > SMALLEST_SIGMA, mean, image)
        settled = noise + alpha / near * (image - mean)
    return batch._replace(image=mean.reshape(batch.image.shape), noise=settled.reshape(batch.noise.shape))
