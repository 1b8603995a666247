"""A checkpoint on an NVIDIA GPU: noise, network, guidance, update and mask stay there, and a plan is one CUDA graph.

Noise and step are the Triton kernels, so a picture is the one that every other backend makes. On the CPU all of it runs
in Triton's interpreter, slowly: that is its rehearsal.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyflow.core import Row
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.kernels import fused_step, normal
from pyflow.kernels.machine import require_gpu
from pyflow.models import lowered
from pyflow.native import Samples
from pyflow.spec import Spec, extra_of

from .cuda_graph import Recorder, capture, repeat
from .runner import Request, told_of

BACKEND = "cuda"
DTYPES = (torch.float32, torch.bfloat16)
GRAPHS = 8  # kept at once; each holds the memory of one network call, and its noise


class Key(NamedTuple):
    """What is written into a graph. Seed, first picture, labels, mask and image are not: they are copied in."""

    plan: tuple[Row, ...]
    batch: int
    guidance: float
    masked: bool


class CudaRunner:
    """The network in `dtype` around a float32 state; `compile` runs it through torch.compile.

    With `graph` a plan is captured once for each `Key` and replayed; what is known of its time is then the whole, so
    `row_seconds` and `denoiser_seconds` have one entry, the same. A request with `on_row` runs row by row, uncaptured:
    a graph calls nobody.

    Inductor keeps what it compiled in TORCHINDUCTOR_CACHE_DIR, Triton in TRITON_CACHE_DIR: a second process that finds
    both compiles nothing. Each batch size is compiled by itself; from the ninth on, torch._dynamo runs eager.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        device: str = "cuda",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        graph: bool = True,
    ) -> None:
        self.device, self.spec, self.dtype, self.graph = torch.device(device), spec, dtype, graph
        _refuse(self.device, dtype)
        network = lowered(model, dtype).to(self.device).eval()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.network = torch.compile(network, dynamic=False) if compile else network
        self.record: Recorder = capture if self.device.type == "cuda" else repeat
        self._lock = threading.Lock()
        self._recorded: OrderedDict[Key, tuple[Loop, Callable[[], object]]] = OrderedDict()

    @torch.inference_mode()
    def run(self, request: Request) -> Samples:
        with self._lock, _ieee_convolutions():
            if self.graph and request.on_row is None:
                return self._replayed(request)
            return self._row_by_row(request)

    @torch.inference_mode()
    def warm(self, request: Request) -> None:
        """Compile and capture what this request will run; no picture is made."""
        with self._lock, _ieee_convolutions():
            if self.graph:
                self._recording(key_of(request))
            else:
                self._loop(key_of(request)).run()

    def _replayed(self, request: Request) -> Samples:
        loop, replay = self._recording(key_of(request))
        began = self._now()
        loop.fill(request)
        replay()
        states = loop.states()
        seconds = np.array([self._now() - began])
        return Samples(states, seconds, seconds.copy())

    def _recording(self, key: Key) -> tuple["Loop", Callable[[], object]]:
        """The graph of this key, made if it is not there; the one that was longest unused makes room."""
        if key not in self._recorded:
            loop = self._loop(key)
            self._recorded[key] = loop, self.record(loop.run, self.device)
            if len(self._recorded) > GRAPHS:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        return self._recorded[key]

    def _row_by_row(self, request: Request) -> Samples:
        loop = self._loop(key_of(request))
        loop.fill(request)
        previous, row_seconds, network_seconds = None, [], []
        for k in range(len(request.plan)):
            began = self._now()
            cond, uncond = loop.predict(k)
            called = self._now()
            previous = loop.step(k, cond, uncond, previous)
            row_seconds.append(self._now() - began)
            network_seconds.append(called - began)
            if request.on_row:
                request.on_row(k)
        return Samples(loop.states(), np.array(row_seconds), np.array(network_seconds))

    def _loop(self, key: Key) -> "Loop":
        return Loop(self.network, self.spec, key, self.device, self.dtype)

    def _now(self) -> float:
        """Seconds, once the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def key_of(request: Request) -> Key:
    return Key(tuple(request.plan), request.batch, float(request.guidance), request.mask is not None)


class Loop:
    """A plan over tensors that keep their addresses, which is all that a graph knows of them.

    States lie channels last in memory, as the network reads them fastest. The step goes element by element and knows no
    layout, so it is given everything as it lies.
    """

    def __init__(
        self, network: Callable[..., Tensor], spec: Spec, key: Key, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.network, self.key, self.device, self.dtype = network, key, device, dtype
        self.shape = (key.batch, *spec.network.shape)
        self.guided = key.guidance != 1.0
        calls = 2 * key.batch if self.guided else key.batch
        self.times = [
            (torch.full((calls,), row.s, device=device), torch.full((calls,), row.t, device=device)) for row in key.plan
        ]
        self.label = torch.zeros(calls, dtype=torch.int64, device=device)
        extra, size = extra_of(spec.network), spec.network.shape[1:]
        # Channels last too, behind those of the state.
        self.told = torch.zeros(calls, *size, extra, dtype=dtype, device=device) if extra else None
        drawn = (0, *(k for k, row in enumerate(key.plan, start=1) if row.n != 0.0))
        self.noise = {row: self._buffer() for row in drawn}
        self.state = self._buffer()
        self.known = {name: self._buffer() for name in ("mask", "image") if key.masked}
        self.prediction = self._buffer() if self.guided and any(row.h != 0.0 for row in key.plan) else None

    def _buffer(self) -> Tensor:
        return _as_it_lies(torch.zeros(self.shape, device=self.device)).contiguous()

    def fill(self, request: Request) -> None:
        """Copy in what differs between two requests of one key."""
        batch, size = request.batch, int(np.prod(self.shape[1:]))
        for row, buffer in self.noise.items():
            drawn = normal(request.seed, request.first, batch, size, row, device=self.device)
            buffer.copy_(_as_it_lies(drawn.reshape(self.shape)))
        self.label.fill_(request.null_label)
        if request.label is not None:
            self.label[:batch].copy_(torch.tensor(request.label))
        for name, buffer in self.known.items():
            value = getattr(request, name)
            if value is None:
                raise InvalidInput(f"mask is given and {name} is None; expected the picture that the mask keeps")
            buffer.copy_(_as_it_lies(torch.tensor(value, device=self.device).expand(self.shape)))
        if self.told is not None:
            told = _as_it_lies(torch.from_numpy(told_of(request, self.shape[1:])))
            for first in range(0, len(self.told), batch):
                self.told[first : first + batch].copy_(told)

    def run(self) -> None:
        previous = None
        for k in range(len(self.key.plan)):
            previous = self.step(k, *self.predict(k), previous)

    def predict(self, k: int) -> tuple[Tensor, Tensor | None]:
        """What the network says with and, where guided, without the labels: one batch, labelled first."""
        x = self._before(k).to(self.dtype)
        given = torch.cat([x, x]) if self.guided else x
        if self.told is not None:
            given = torch.cat([given, self.told], dim=-1)
        predicted = _as_it_lies(self.network(_as_named(given), *self.times[k], self.label)).float().contiguous()
        batch = self.key.batch
        return predicted[:batch], predicted[batch:] if self.guided else None

    def step(self, k: int, cond: Tensor, uncond: Tensor | None, previous: Tensor | None) -> Tensor | None:
        """The state after row k, in place; returns what the next row calls `previous`."""
        rows = self.key.plan
        remembered = k + 1 < len(rows) and rows[k + 1].h != 0.0
        _, guided = fused_step(
            rows[k],
            x=self._before(k),
            cond=cond,
            uncond=uncond,
            guidance=self.key.guidance,
            previous=previous,
            noise=self.noise.get(k + 1),
            noise0=self.noise[0],
            out=self.state,
            guided=self.prediction if remembered else None,
            **self.known,
        )
        return guided

    def _before(self, k: int) -> Tensor:
        """The state that row k starts from. The first noise stays as it was: kept pixels are mixed of it."""
        return self.noise[0] if k == 0 else self.state

    def states(self) -> np.ndarray:
        """A copy, with the channels where everybody expects them."""
        states = np.empty(self.shape, np.float32)
        torch.from_numpy(states).copy_(_as_named(self.state))
        return states


def _as_it_lies(pictures: Tensor) -> Tensor:
    """NCHW to a view as NHWC; points stay as they are."""
    return pictures.movedim(1, -1)


def _as_named(pictures: Tensor) -> Tensor:
    return pictures.movedim(-1, 1)


def _ieee_convolutions() -> AbstractContextManager[None]:
    """cuDNN takes float32 convolutions in TF32, with ten bits of mantissa, unless told not to: other pictures."""
    return torch.backends.cudnn.flags(
        enabled=True,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )


def _refuse(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device is '{device}' and torch {torch.__version__} sees no NVIDIA GPU; expected one: take device='cpu', "
            "or install a CUDA build of torch on a machine that has a GPU"
        )
    require_gpu(device)
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
