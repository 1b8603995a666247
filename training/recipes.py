"""Recipes: a full training setting each, as a function that returns a frozen dataclass."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyflow.errors import InvalidInput
from pyflow.spec import MLP, Network, UNet

from .fields import NETWORK, changed, read_yaml
from .settings import Options, Recipe

__all__ = ["SIZES", "STUDENTS", "TEACHERS", "TUNED", "Options", "Recipe", "recipe"]

# The networks that figures in this project speak of, at 32x32; names tell the parameters.
UNET_1M = UNet(channels=32, multipliers=(1, 1, 2, 2), blocks=1, attention=(16, 8, 4))
UNET_9M = UNet(channels=64, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), heads=4)
UNET_36M = UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), heads=4)
UNET_DIGITS = UNet(shape=(1, 16, 16), channels=24, multipliers=(1, 2, 2), blocks=1, attention=(4,))
MLP_2D = MLP(shape=(2,), width=256, depth=4)

SIZES = {"1m": UNET_1M, "9m": UNET_9M, "36m": UNET_36M}
WIDTHS = ("channels", "multipliers", "blocks")
# What a GPU adds: half-lives of 3 and 5% of the run, both kept, and the first one published.
ON_GPU: dict[str, Any] = {"half_lives": (0.03, 0.05), "flip": True, "precision": "bf16", "compile": True}

# KL after 3000 steps of lsd, at 1, 2, 4, 8 and 16 steps: .292/.237/.169/.099/.089 with Muon at a rate of 0.01 and
# .436/.427/.353/.337/.325 with AdamW at 1e-3. The learned weight is not for rates as high as these: it diverged at .02.
IN_THE_PLANE: dict[str, Any] = {
    "steps": 20_000,
    "batch": 2048,
    "optimizer": "muon",
    "learning_rate": 0.012,
    "weight_decay": 0.0,
    "half_lives": (0.03,),
    "precision": "bf16",
    "compile": True,
    "options": Options(pooled=True),
}


def cfm(data: str = "digits", size: str = "1m") -> Recipe:
    """A teacher by conditional flow matching; the other teachers differ from it in what they name."""
    if data == "checkerboard":
        return Recipe("cfm", "cfm", data, MLP_2D, **IN_THE_PLANE)
    if data == "digits":
        return Recipe("cfm", "cfm", data, UNET_DIGITS, steps=600, batch=128, learning_rate=2e-3)
    if size == "1m":  # half an hour of one core
        return Recipe("cfm", "cfm", data, UNET_1M, steps=1600, batch=64, learning_rate=1e-3)
    if size == "9m":  # 8.2M pictures
        return Recipe("cfm", "cfm", data, UNET_9M, steps=16_000, batch=512, learning_rate=6e-4, **ON_GPU)
    return Recipe("cfm", "cfm", data, UNET_36M, steps=16_000, batch=1024, learning_rate=4e-4, **ON_GPU)


def ddpm(data: str = "digits", size: str = "1m") -> Recipe:
    """A teacher by denoising diffusion over linear betas, sampled by DDIM. Cosine ones (`--path vp-cosine`) divide the
    first step's error of the noise by an alpha(0) that is four times smaller: digits came out with specks."""
    return replace(cfm(data, size), name="ddpm", objective="ddpm", path="vp-linear", prediction="noise", solver="ddim")


def inpaint(data: str = "digits", size: str = "1m") -> Recipe:
    """A checkpoint goes on as a network that sees what is kept of a picture: half of the samples have a hole, which
    has its own share of the loss."""
    setting = cfm(data, size)
    if not isinstance(setting.network, UNet):
        raise InvalidInput(f"data is {data!r}; recipe 'inpaint' expected pictures: points have no holes to fill")
    network = replace(setting.network, extra=setting.network.shape[0] + 1)
    # On digits 200 steps at 5e-5 moved the PSNR of four steps by +.1 dB (centre, boxes, irregular, half), at 5e-4 by
    # +1.1, +1.2, +1.1 and +.6: what reads the mask begins at zero, and Adam moves no weight faster than its rate.
    few = setting.steps < 10_000
    return replace(setting, name="inpaint", network=network, learning_rate=5e-4 if few else 5e-5, label_dropout=0.15)


def _two_times(name: str, data: str, size: str, options: Options) -> Recipe:
    setting = replace(cfm(data, size), name=name, objective=name, options=options)
    if data != "checkerboard":
        return replace(setting, network=replace(setting.network, times=2))
    # KL of lsd at 1, 4 and 16 steps after 20,000: .129/.088/.048 at a rate of 0.012 with waves of 100 radians. There
    # MeanFlow diverged by step 600, and lsd's gradients were six times as large as at 0.003.
    network = replace(MLP_2D, times=2, fastest_wave=20.0)
    return replace(setting, network=network, learning_rate=0.003, precision="fp32", compile=False)


def _flow_map(name: str, data: str, size: str) -> Recipe:
    options = Options(pooled=True) if data == "checkerboard" else Options(learned_weight=True)
    return _two_times(name, data, size, options)


def _mean_flow(name: str, data: str, size: str) -> Recipe:
    """Guidance 2 is in the target where there are labels to guide by. A target in the plane is mostly chance, and
    the adaptive weight would favour those that fit."""
    if data == "checkerboard":
        return _two_times(name, data, size, Options(adaptive=0.0, pooled=True))
    return _two_times(name, data, size, Options(times="logit-normal", diagonal=0.25, guidance=2.0))


def meanflow(data: str = "digits", size: str = "1m") -> Recipe:
    return _mean_flow("meanflow", data, size)


def improved_meanflow(data: str = "digits", size: str = "1m") -> Recipe:
    return _mean_flow("improved-meanflow", data, size)


def lsd(data: str = "digits", size: str = "1m") -> Recipe:
    return _flow_map("lsd", data, size)


def psd_midpoint(data: str = "digits", size: str = "1m") -> Recipe:
    return _flow_map("psd-midpoint", data, size)


def psd_uniform(data: str = "digits", size: str = "1m") -> Recipe:
    return _flow_map("psd-uniform", data, size)


def esd(data: str = "digits", size: str = "1m") -> Recipe:
    return _flow_map("esd", data, size)


def consistency(data: str = "digits", size: str = "1m") -> Recipe:
    """Consistency training: each step jumps to the picture and noises it anew. Its gap's bias is what it ends with."""
    setting = replace(cfm(data, size), options=Options())
    return replace(setting, name="consistency", objective="consistency", solver="renoise")


def reflow(data: str = "digits", size: str = "1m") -> Recipe:
    """A student of 1, 2 or 4 steps by reflow and distillation on its teacher's pairs; the guidance is in the pairs."""
    setting = cfm(data, size)
    if data != "checkerboard":
        setting = replace(setting, batch=max(128, setting.batch), learning_rate=min(1e-3, setting.learning_rate))
    return replace(
        setting,
        steps=500 if data == "digits" else setting.steps // 2,
        name="reflow",
        objective="reflow",
        options=Options(times="u-shaped", huber=0.03),
        label_dropout=0.0,
        flip=False,  # noise and picture belong together
    )


def grid(data: str = "digits", size: str = "1m") -> Recipe:
    """A student of exactly `options.grid` steps, distilled on that grid."""
    return replace(reflow(data, size), name="grid", objective="grid", options=Options(huber=0.03))


def lines(data: str = "digits", size: str = "1m") -> Recipe:
    """A student that says the picture at every time of the straight line to it."""
    return replace(
        reflow(data, size), name="lines", objective="lines", prediction="image", solver="ddim", options=Options()
    )


def naive(data: str = "digits", size: str = "1m") -> Recipe:
    """What `lines` is held against: a student that has seen nothing but pure noise."""
    return replace(lines(data, size), name="naive", objective="naive")


Known = dict[str, Callable[[str, str], Recipe]]
TEACHERS: Known = {
    "cfm": cfm,
    "ddpm": ddpm,
    "meanflow": meanflow,
    "improved-meanflow": improved_meanflow,
    "lsd": lsd,
    "psd-midpoint": psd_midpoint,
    "psd-uniform": psd_uniform,
    "esd": esd,
    "consistency": consistency,
}
TUNED: Known = {"inpaint": inpaint}  # of a checkpoint, on data
STUDENTS: Known = {"reflow": reflow, "grid": grid, "lines": lines, "naive": naive}


def recipe(
    name: str,
    data: str | None = None,
    *,
    size: str | None = None,
    file: Path | None = None,
    base: Mapping[str, Any] | None = None,
    known: Known = TEACHERS | TUNED | STUDENTS,
    **changes: Any,
) -> Recipe:
    """A recipe by name. Over its own fields go those of `base`, then those of a YAML file, then `changes`.

    Without `data` it is the file's, or the digits; without `size` that of the network in `base`, or 1m.
    """
    if name not in known:
        others = {**dict.fromkeys(STUDENTS, "distill"), **dict.fromkeys(TEACHERS | TUNED, "train")}
        way_out = f": `pyflow {others[name]} {name}` trains that one" if name in others else ""
        raise InvalidInput(f"recipe is {name!r}; expected one of {', '.join(known)}{way_out}")
    written = read_yaml(file) if file else {}
    if written.get("name", name) != name:
        raise InvalidInput(f"{file} is a recipe of {written['name']!r}; expected one of {name!r}: name that instead")
    data = data or written.get("data", "digits")
    _refuse_size(size, data, any(field.startswith(f"{NETWORK}.") for field in written))
    taught = (base or {}).get(NETWORK)  # a teacher's
    own = None if taught is None else _size_of(taught)
    if taught is not None and size not in (None, own):
        raise InvalidInput(f"size is {size!r}; expected {own or 'none'}: the network is the teacher's")
    setting = known[name](data, size or own or "1m")
    return changed(setting, {**(base or {}), **written, **changes, "data": data})


def _size_of(network: Network) -> str | None:
    widths = [getattr(network, name, None) for name in WIDTHS]
    return next((size for size, one in SIZES.items() if [getattr(one, name) for name in WIDTHS] == widths), None)


def _refuse_size(size: str | None, data: str, written: bool) -> None:
    if size is None:
        return
    if size not in SIZES:
        raise InvalidInput(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    if data in ("digits", "checkerboard"):
        raise InvalidInput(f"size is {size!r}; expected none: the network of {data} comes in one size")
    if written:
        raise InvalidInput(f"size is {size!r}; expected none beside a file that names its network")
