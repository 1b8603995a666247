"""The three shapes of an export, as torch modules: the denoiser, the step around it, and the sampler around that.

`Step` and `Sampler` are `core.fused_step` and `core.sample` for a graph, where nothing can be skipped at run time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from pyflow import core
from pyflow.core import Plan, Row
from pyflow.models import lowered
from pyflow.spec import Spec, input_shape

# Tracing the tests' tiny UNet takes 13 s for 4 rows unrolled, 28 s for 8, 82 s for 16, and 8 s for a loop of any number
# (2 cores of an AMD EPYC, 2026-11-21).
UNROLLED_ROWS = 8
FIXED = ("row", "guidance")  # inputs that do not begin with the batch
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Denoiser(nn.Module):
    """The network with only the inputs that it reads, in the order of `names`; float32 outside, `dtype` inside."""

    def __init__(self, model: nn.Module, spec: Spec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.names = self.inputs_of(spec)
        self.outputs: tuple[str, ...] = ("prediction",)
        self.model, self.dtype = lowered(model, dtype).eval(), dtype

    @staticmethod
    def inputs_of(spec: Spec) -> tuple[str, ...]:
        network = spec.network
        return ("x", "s", *(("t",) if network.times == 2 else ()), *(("label",) if network.classes else ()))

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs))
        s = given["s"]
        prediction = self.model(given["x"].to(self.dtype), s, given.get("t", s), given.get("label"))
        return prediction.float()

    def call(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        given = {"x": x, "s": s, "t": t, "label": label}
        return self(*(given[name] for name in self.names))

    def examples(self, spec: Spec, batch: int = 2) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and types, to trace with."""
        given = {
            "x": torch.zeros(batch, *input_shape(spec.network)),
            "s": torch.zeros(batch),
            "t": torch.zeros(batch),
            "label": torch.zeros(batch, dtype=torch.int64),
        }
        return tuple(given[name] for name in self.names)


class Step(nn.Module):
    """One row, told as an input (8,), with every operand present: one whose coefficient is zero counts as zero."""

    def __init__(self, denoiser: Denoiser, spec: Spec, guided: bool) -> None:
        super().__init__()
        self.denoiser, self.null_label, self.guided = denoiser, spec.network.classes, guided
        self.names = (
            *("row", "x", "previous", "noise", "mask", "image", "noise0"),
            *(("guidance",) if guided else ()),
            *(("label",) if "label" in denoiser.names else ()),
        )
        self.outputs = ("next", "guided")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.names, inputs))
        row: Any = Row(*(given["row"][k : k + 1] for k in range(len(Row._fields))))
        x, label = given["x"], given.get("label")
        p, uncond = _predict(self.denoiser, x, row.s, row.t, label, self.null_label, self.guided)
        if uncond is not None:
            p = uncond + given["guidance"] * (p - uncond)
        terms = ((row.a, x), (row.b, p), (row.h, given["previous"]), (row.n, given["noise"]))
        kept_terms = ((row.ka, given["image"]), (row.ks, given["noise0"]))
        y, kept = _present(x, terms), _present(x, kept_terms)
        mask = given["mask"]
        return mask * y + (1 - mask) * kept, p

    def examples(self, spec: Spec, batch: int = 2) -> tuple[Tensor, ...]:
        others = {"row": torch.zeros(8), "guidance": torch.ones(1), "label": torch.zeros(batch, dtype=torch.int64)}
        # A tensor of its own for each: the exporter takes one that it meets twice for one input.
        return tuple(others[name] if name in others else torch.zeros(batch, *spec.network.shape) for name in self.names)


def _present(x: Tensor, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of the terms whose coefficient is not zero: 0 times what nobody wrote may be NaN."""
    total = torch.zeros_like(x)
    for coefficient, operand in terms:
        spread = coefficient.reshape((1,) * x.ndim)
        total = total + torch.where(spread != 0.0, spread * operand, torch.zeros_like(operand))
    return total


class Sampler(nn.Module):
    """A whole plan from noise to states and, of pictures, uint8 NHWC too.

    A short plan is one call of the network after the other: each row's times are constants, so what the network makes
    of them is folded into the graph. A long one is a loop over the table of its rows, with the network in it once; it
    embeds the times anew in each row: a table of embeddings saves 2% of the UNet of 1.4M, 3 us of an MLP's 17.
    """

    table: Tensor

    def __init__(self, denoiser: Denoiser, spec: Spec, plan: Plan, guidance: float) -> None:
        super().__init__()
        self.denoiser, self.null_label, self.guidance = denoiser, spec.network.classes, guidance
        self.plan = list(plan)
        self.register_buffer("table", torch.tensor(self.plan), persistent=False)
        self.names = ("noise", *(("label",) if "label" in denoiser.names else ()))
        self.outputs = ("states", *(("images",) if len(spec.network.shape) == 3 else ()))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs))
        run = self._unrolled if len(self.plan) <= UNROLLED_ROWS else self._looped
        states = run(given["noise"], given.get("label"))
        return (states, _pictures(states)) if "images" in self.outputs else (states,)

    def _unrolled(self, x: Tensor, label: Tensor | None) -> Tensor:
        previous = None
        for row in self.plan:
            s, t = torch.tensor([row.s]), torch.tensor([row.t])
            cond, uncond = _predict(self.denoiser, x, s, t, label, self.null_label, self.guidance != 1.0)
            x, previous = core.fused_step(row, x=x, cond=cond, uncond=uncond, guidance=self.guidance, previous=previous)
        return x

    def _looped(self, x: Tensor, label: Tensor | None) -> Tensor:
        def unfinished(k: Tensor, x: Tensor, previous: Tensor) -> Tensor:
            return (k < len(self.plan)).all()  # as a scalar, which a loop asks for

        def step(k: Tensor, x: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            row: Any = Row(*self.table.index_select(0, k).reshape(len(Row._fields), 1))
            p, uncond = _predict(self.denoiser, x, row.s, row.t, label, self.null_label, self.guidance != 1.0)
            if uncond is not None:
                p = uncond + self.guidance * (p - uncond)
            a, b, h = (coefficient.reshape((1,) * x.ndim) for coefficient in (row.a, row.b, row.h))
            return k + 1, a * x + b * p + h * previous, p

        start = torch.zeros(1, dtype=torch.int64)  # one element, not a scalar: index_select takes it as it is
        return while_loop(unfinished, step, (start, x, torch.zeros_like(x)))[1]

    def examples(self, spec: Spec, batch: int = 2) -> tuple[Tensor, ...]:
        sizes = {"noise": torch.zeros(batch, *spec.network.shape), "label": torch.zeros(batch, dtype=torch.int64)}
        return tuple(sizes[name] for name in self.names)


def _predict(
    denoiser: Denoiser, x: Tensor, s: Tensor, t: Tensor, label: Tensor | None, null_label: int, guided: bool
) -> tuple[Tensor, Tensor | None]:
    """The predictions with and without the label, both from one batch, labelled first; None where nothing is guided."""
    if not guided:
        return denoiser.call(x, s, t, label), None
    assert label is not None  # guidance follows a label
    both = torch.cat([label, torch.full_like(label, null_label)])
    predictions = denoiser.call(torch.cat([x, x]), s, t, both)
    return predictions[: x.shape[0]], predictions[x.shape[0] :]  # chunk would freeze the batch of the trace


def _pictures(states: Tensor) -> Tensor:
    """As `csrc/to_uint8.cpp` does it: clamped, rounded to nearest, half up, channels last."""
    levels = torch.clamp(states * 127.5 + 127.5, 0.0, 255.0)
    return torch.floor(levels + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
