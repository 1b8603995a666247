"""Objectives of flow maps: phi_st(x) is the average velocity over s..t, X_st(x) = x + (t-s) phi_st(x) the map.

I_t = path.mix is the state of a sample, dI_t = path.velocity its velocity, b_t = phi_tt the network's own instantaneous
velocity, sg[] a stop of the gradient. The first share `options.diagonal` of each batch learns b_t by flow matching.

What differentiates the network along a direction (`_jvp`) needs the module itself: a wrapper that hooks the forward
pass, as DistributedDataParallel does, would not synchronise these gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyflow.core import PATHS
from pyflow.spec import Spec

from .batch import Batch, Losses, joined, over
from .pooling import pooled
from .settings import Options
from .times import draw_interval, draw_time

Field = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, s, t), labels and all else given

ADAPTIVE_FLOOR = 1e-3  # beside a SUM over elements: beside a mean it would be 3072 times as strong on CIFAR-10


def mean_square(difference: Tensor) -> Tensor:
    return difference.float().square().flatten(1).mean(1)


def _labelled(net: nn.Module, batch: Batch) -> Field:
    return lambda x, s, t: net(x, s, t, batch.label)


def _jvp(
    phi: Field, at: tuple[Tensor, Tensor, Tensor], direction: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """phi and its derivative along a direction of (x, s, t), in float32 whatever the precision of the rest: torch's
    autocast casts weights here and not what they meet. Fused attention has no such derivative, plain one has.

    Forward mode does not compile (torch 2.13: "ZeroTensors are immutable", and group norm has no fake tensors there).
    Reverse mode twice does: of LSD in 2D at batch 2048 a step then takes 43 ms for 54 on one core.
    """
    x, s, t = direction
    direction = x.to(at[0].dtype), s, t
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(at[0].device.type, enabled=False):
        if not torch.compiler.is_compiling():
            forward = torch.func.jvp(phi, at, direction)
            return forward[0], forward[1]
        reverse = torch.func.vjp(phi, *at)
        push = torch.func.vjp(reverse[1], torch.zeros_like(reverse[0]))[1]
        return reverse[0], push(direction)[0]


def _diagonal(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """|phi_tt(I_t) - dI_t|^2."""
    path, t = PATHS[spec.path], draw_time(batch.coins[:, 0], options.times, 0.6, 1.6)
    if options.pooled:
        batch = pooled(batch, path, t)
    at = over(t, batch.image)
    said = net(path.mix(batch.image, batch.noise, at), t, t, batch.label)
    each = mean_square(said - path.velocity(batch.image, batch.noise, at))
    return Losses(each, t, t, each)


Missed = Callable[[Field, Tensor, Tensor, Tensor, Tensor], Tensor]  # (phi, I_s, s, t, coins)


def _distilled(net: nn.Module, spec: Spec, batch: Batch, options: Options, missed: Missed) -> Losses:
    """|what phi misses of its own equation|^2, after the first share of the batch, which is on the diagonal."""
    first, rest = batch.cut(options.diagonal)
    s, t = draw_interval(rest, options)
    x = PATHS[spec.path].mix(rest.image, rest.noise, over(s, rest.image))
    each = mean_square(missed(_labelled(net, rest), x, s, t, rest.coins))
    return joined(_diagonal(net, spec, first, options), Losses(each, s, t, each))


def lsd(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Lagrangian self-distillation (Boffi et al. 2025): |d_t X_st(I_s) - sg[b_t(X_st(I_s))]|^2."""

    def missed(phi: Field, x: Tensor, s: Tensor, t: Tensor, coins: Tensor) -> Tensor:
        gap = over(t - s, x)
        mean, rate = _jvp(phi, (x, s, t), (torch.zeros_like(x), torch.zeros_like(s), torch.ones_like(t)))
        with torch.no_grad():
            velocity = phi(x + gap * mean, t, t)
        return mean + gap * rate - velocity

    return _distilled(net, spec, batch, options, missed)


def esd(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Eulerian self-distillation (Boffi et al. 2025): |d_s X_st(I_s) + grad X_st(I_s) . sg[b_s(I_s)]|^2.

    The gradient stops at the velocity alone. Were it to stop at the whole second term, an error of X that waves as
    e^{i(ws + kx)} would grow where w(w + bk) < 0, the faster the larger k: in the plane that diverged by step 6,000.
    """

    def missed(phi: Field, x: Tensor, s: Tensor, t: Tensor, coins: Tensor) -> Tensor:
        with torch.no_grad():
            velocity = phi(x, s, s)
        mean, rate = _jvp(phi, (x, s, t), (velocity, torch.ones_like(s), torch.zeros_like(t)))
        return over(t - s, x) * rate - mean + velocity

    return _distilled(net, spec, batch, options, missed)


def _psd(net: nn.Module, spec: Spec, batch: Batch, options: Options, share: Callable[[Tensor], Tensor]) -> Losses:
    """Progressive self-distillation (Boffi et al. 2025): |phi_st(I_s) - sg[(1-h) phi_su(I_s) + h phi_ut(X_su(I_s))]|^2,
    where u = h s + (1-h) t."""

    def missed(phi: Field, x: Tensor, s: Tensor, t: Tensor, coins: Tensor) -> Tensor:
        h = share(coins[:, 2])
        u = h * s + (1 - h) * t
        said = phi(x, s, t)
        with torch.no_grad():
            near = phi(x, s, u)
            far = phi(x + over(u - s, x) * near, u, t)
        return said - (1 - over(h, x)) * near - over(h, x) * far

    return _distilled(net, spec, batch, options, missed)


def psd_midpoint(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Progressive self-distillation over two halves, as shortcut models (Frans et al. 2025) do it: h = 1/2."""
    return _psd(net, spec, batch, options, lambda coin: torch.full_like(coin, 0.5))


def psd_uniform(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Progressive self-distillation over two parts of any size: h uniform in 0..1."""
    return _psd(net, spec, batch, options, lambda coin: coin)


def _guidance(spec: Spec, batch: Batch, options: Options) -> tuple[Tensor, tuple[Tensor, ...]]:
    """w of each sample, and what the network is told of it: a guided one is told w, drawn in 1..options.guidance."""
    guided = spec.network.guided
    largest = torch.full_like(batch.coins[:, 2], options.guidance)
    w = 1 + (largest - 1) * batch.coins[:, 2] if guided else largest
    return w, (w,) if guided else ()


def _guided_velocity(net: nn.Module, spec: Spec, batch: Batch, options: Options, x: Tensor, s: Tensor) -> Tensor:
    """v~ = w v + (1-w) u_ss(x, no label), where v = dI_s; a sample without its label keeps v."""
    v = PATHS[spec.path].velocity(batch.image, batch.noise, over(s, x))
    if options.guidance == 1.0:
        return v
    w, told = _guidance(spec, batch, options)
    nothing = torch.full_like(batch.label, spec.network.classes)
    with torch.no_grad():
        plain = net(x, s, s, nothing, *told).float()
    return torch.where(over(batch.label == nothing, x), v, plain + over(w, x) * (v - plain))


def _mean_flow(net: nn.Module, spec: Spec, batch: Batch, options: Options, own_tangent: bool) -> Losses:
    """u_st(I_s) - (t-s) sg[d_s u_st + grad u_st . tangent] - v~, squared and weighted by sg[1/(sum of squares + c)^p].

    Written with the data before the noise, as in the papers, the sign of (t-s) is the other one.
    """
    s, t = draw_interval(batch, options)
    alone = batch.share(options.diagonal)
    first = draw_time(batch.coins[:alone, 0], options.times, 0.6, 1.6)
    s, t = torch.cat([first, s[alone:]]), torch.cat([first, t[alone:]])
    if options.pooled:
        batch = pooled(batch, PATHS[spec.path], s)
    x, told = PATHS[spec.path].mix(batch.image, batch.noise, over(s, batch.image)), _guidance(spec, batch, options)[1]
    v = _guided_velocity(net, spec, batch, options, x, s)

    def mean_velocity(part: slice) -> Field:
        return lambda x, s, t: net(x, s, t, batch.label[part], *(each[part] for each in told))

    here, there = slice(None, alone), slice(alone, None)
    said = mean_velocity(here)(x[here], s[here], t[here])
    tangent = v[there]
    if own_tangent:
        with torch.no_grad():
            tangent = mean_velocity(there)(x[there], s[there], s[there]).float()
    at, direction = (x[there], s[there], t[there]), (tangent, torch.ones_like(s[there]), torch.zeros_like(t[there]))
    mean, rate = _jvp(mean_velocity(there), at, direction)
    said, turned = torch.cat([said, mean]), torch.cat([torch.zeros_like(said), rate.detach()])
    total = (said - over(t - s, x) * turned - v).float().square().flatten(1).sum(1)
    weighted = total / (total.detach() + ADAPTIVE_FLOOR) ** options.adaptive
    return Losses(weighted, s, t, total / batch.image[0].numel())


def meanflow(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """MeanFlow (Geng et al. 2025, eq. 11 and 22): |u_st(I_s) - sg[v + (t-s)(d_s u_st + v . grad u_st)]|^2, weighted."""
    return _mean_flow(net, spec, batch, options, own_tangent=False)


def improved_meanflow(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Improved MeanFlow (Geng et al. 2025b): |V - v|^2 with V = u_st - (t-s) sg[d_s u_st + u_ss . grad u_st].

    V says its sample's velocity from x alone, the network's own velocity being the tangent: a regression, whose targets
    do not depend on the network. MeanFlow's tangent is the sample's velocity.
    """
    return _mean_flow(net, spec, batch, options, own_tangent=True)


def consistency(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Consistency training (Song et al. 2023, eq. 10): |f(I_s) - sg[f(I_t)]|^2 / gap, t = s + gap, same noise, where
    f(x) = X_s1(x). Over the gap's first power, gradients keep their size as it shrinks."""
    s = draw_time(batch.coins[:, 0], options.times)
    t, one = (s + options.gap).clamp(max=1.0), torch.ones_like(s)

    def end(at: Tensor) -> Tensor:
        x = PATHS[spec.path].mix(batch.image, batch.noise, over(at, batch.image))
        return x + over(1 - at, x) * net(x, at, one, batch.label)

    said = end(s)
    with torch.no_grad():
        wanted = end(t)
    square = mean_square(said - wanted)
    return Losses(square / options.gap, s, t, square)
