"""A network of models.py as the operations of the native engine.

A concatenation is no operation: its two tensors are channels of one buffer, and their producers write there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from pyflow.engines.graph import NO_WEIGHTS, NONE, Buffer, Graph, Kind, Operation, Type
from pyflow.errors import InvalidInput
from pyflow.models import Attention, Block, Condition, MLPNet, UNetNet
from pyflow.spec import Own, Spec, refuse_other_inputs

from .packing import Floats, Range, pack
from .ways import Choose, Layer


def lower(
    model: nn.Module,
    spec: Spec,
    choose: Choose,
    ranges: Mapping[str, Range] | None = None,
    attention: Type = Type.F32,
) -> Graph:
    """The graph; `choose` says how each layer is computed, `ranges` what the inputs of int8 layers stand for.

    `attention` is the type of its products; bfloat16 takes pixels and a head's channels in pairs.
    """
    network = spec.network
    refuse_other_inputs(spec)
    if isinstance(network, Own):
        raise InvalidInput(
            f"the network is your own {network.name}, which the native engine does not know: take --to onnx"
        )
    lowering = _Lowering(Graph(network.shape, network.times, network.classes), choose, ranges or {}, attention)
    if isinstance(model, UNetNet):
        _unet(lowering, model)
    elif isinstance(model, MLPNet):
        _mlp(lowering, model)
    else:
        raise _unsupported("the network", model, "UNetNet or MLPNet")
    return lowering.graph


class Prepare(NamedTuple):
    """What is done to a layer's input beside its cast and its border."""

    name: str
    norm: nn.GroupNorm | None = None
    film_offset: int | None = None
    silu: bool = False
    upsample: int = 1


@dataclass
class _Lowering:
    """Adds operations to the graph. Tensors are named by their index in it."""

    graph: Graph
    choose: Choose
    ranges: Mapping[str, Range]
    attention: Type
    film: int = NONE

    def load(self, border: int, extra: int = 0) -> int:
        """The state and, behind its channels, the `extra` ones that the network is told beside it."""
        channels, height, width = (*self.graph.shape, 1, 1)[:3]
        output = self.graph.whole(Buffer(height, width, channels + extra, border))
        return self.graph.add(Operation(Kind.LOAD, "load", output=output))

    def condition(self, condition: Condition, silu: bool) -> int:
        """Times and label as one vector."""
        graph, times = self.graph, condition.times
        sinusoids = graph.whole(Buffer(1, 1, times * len(condition.waves)))
        waves, phases = self._keep(condition.waves), self._keep(condition.phases)
        graph.add(Operation(Kind.WAVES, "condition.waves", output=sinusoids, weights=waves, bias=phases))
        first, activation, second = condition.project
        _expect("condition.project.1", activation, nn.SiLU)
        hidden = self.convolve("condition.project.0", first, sinusoids, silu=True)
        label = NONE
        if condition.label is not None:
            label = graph.whole(Buffer(1, 1, condition.label.embedding_dim))
            table = self._keep(condition.label.weight)
            graph.add(Operation(Kind.LABEL, "condition.label", output=label, weights=table))
        return self.convolve("condition.project.2", second, hidden, other=label, silu=silu)

    def convolve(
        self,
        name: str,
        module: nn.Module,
        source: int,
        prepare: Prepare | None = None,
        *,
        other: int = NONE,
        silu: bool = False,
        target: int | None = None,
    ) -> int:
        """The convolution of the prepared input, plus bias and the other tensor, then SiLU; into `target` if any."""
        taps, stride = _taps(name, module)
        given, prepare = self.graph.buffer_of(source), prepare or Prepare(f"{name}.input")
        height, width = given.height * prepare.upsample, given.width * prepare.upsample
        outputs, inputs = taps.shape[:2]
        layer = Layer(name, inputs, outputs, taps.shape[2], stride, height, width)
        way = self.choose(layer)
        range = self.ranges[name] if way.weights == Type.S8 else None
        source = self._prepared(source, prepare, Buffer(height, width, inputs, layer.taps // 2, way.input), range)
        if target is None:
            target = self.graph.whole(Buffer(height // stride, width // stride, outputs))
        packed = pack(taps, _bias(module, outputs), *way, range)
        made = Operation(
            Kind.CONVOLVE,
            name,
            *(source, other, target, layer.taps, stride, *way),
            silu=silu,
            weights=self.graph.keep(packed.weights),
            bias=self.graph.keep(packed.bias),
            scales=NO_WEIGHTS if packed.scales is None else self.graph.keep(packed.scales),
        )
        return self.graph.add(made)

    def attend(self, name: str, attention: Attention, source: int, target: int | None) -> int:
        qkv = self.convolve(f"{name}.qkv", attention.qkv, source, Prepare(f"{name}.norm", attention.norm))
        given = self.graph.buffer_of(qkv)
        attended = self.graph.whole(replace(given, channels=given.channels // 3))
        pairs = given.height * given.width % 2 == 0 and given.channels // 3 // attention.heads % 2 == 0
        products, heads = self.attention if pairs else Type.F32, attention.heads
        self.graph.add(Operation(Kind.ATTEND, name, qkv, output=attended, weights_type=products, heads=heads))
        return self.convolve(f"{name}.out", attention.out, attended, other=source, target=target)

    def store(self, source: int) -> None:
        self.graph.add(Operation(Kind.STORE, "store", input=source))

    def _prepared(self, source: int, prepare: Prepare, wanted: Buffer, range: Range | None) -> int:
        """The source as its layer reads it; itself where it is that already."""
        tensor = self.graph.tensors[source]
        borderless = wanted.border == 0 and wanted.type == Type.F32
        fits = borderless or (self.graph.buffers[tensor.buffer] == wanted and tensor.channels == wanted.channels)
        if fits and prepare == Prepare(prepare.name):
            return source
        norm, film = prepare.norm, prepare.film_offset
        if norm is not None:
            _expect(prepare.name, norm, nn.GroupNorm)
        made = Operation(
            Kind.PREPARE,
            prepare.name,
            input=source,
            other=NONE if film is None else self.film,
            output=self.graph.whole(wanted),
            silu=prepare.silu,
            groups=norm.num_groups if norm else 0,
            upsample=prepare.upsample,
            film_offset=film or 0,
            epsilon=norm.eps if norm else 0.0,
            scale=range.scale if range else 0.0,
            zero=range.zero if range else 0,
            weights=self._keep(norm.weight) if norm else NO_WEIGHTS,
            bias=self._keep(norm.bias) if norm else NO_WEIGHTS,
        )
        return self.graph.add(made)

    def _keep(self, values: Tensor) -> int:
        return self.graph.keep(_array(values))


def _mlp(lowering: _Lowering, model: MLPNet) -> None:
    condition = lowering.condition(model.condition, silu=False)
    h = lowering.convolve("enter", model.enter, lowering.load(border=0), other=condition, silu=True)
    for index, layer in enumerate(model.hidden):
        h = lowering.convolve(f"hidden.{index}", layer, h, silu=True)
    lowering.store(lowering.convolve("leave", model.leave, h))


def _unet(lowering: _Lowering, model: UNetNet) -> None:
    condition = lowering.condition(model.condition, silu=True)
    lowering.film = lowering.convolve("film", model.film, condition)
    films = accumulate(model.film_widths, initial=0)
    joints = _joints(lowering.graph, model)

    kept = [joint.kept for joint in reversed(joints)]
    h = lowering.convolve("enter", model.enter, lowering.load(1, model.spec.extra), target=kept[0])
    for index, (layer, target) in enumerate(zip(model.down, kept[1:])):
        name = f"down.{index}"
        if isinstance(layer, Block):
            h = _block(lowering, name, layer, h, next(films), target)
        else:
            h = lowering.convolve(name, layer, h, target=target)

    first, second = model.middle
    h = _block(lowering, "middle.0", _expect("middle.0", first, Block), h, next(films), None)
    up = [(f"up.{index}", layer) for index, layer in enumerate(model.up)]
    rising = [("middle.1", _expect("middle.1", second, Block)), *up]
    to_come = iter(joints)
    for (name, layer), following in zip(rising, [*model.up, None]):
        joint = next(to_come) if isinstance(following, Block) else None
        end = joint.above if joint else None
        if isinstance(layer, Block):
            h = _block(lowering, name, layer, h, next(films), end)
        else:
            h = lowering.convolve(name, layer, h, Prepare(f"{name}.upsample", upsample=2), target=end)
        h = joint.both if joint else h
    lowering.store(lowering.convolve("leave", model.leave, h, Prepare("norm", model.norm, silu=True)))


class _Joint(NamedTuple):
    """A concatenation: what comes from above, and what was kept on the way down, side by side in one buffer."""

    above: int
    kept: int
    both: int


def _joints(graph: Graph, model: UNetNet) -> list[_Joint]:
    """Of the blocks on the way up, in their order; the last of them takes what was kept first."""
    _, height, width = graph.shape
    kept = [Buffer(height, width, _array(model.enter.weight).shape[0])]
    for index, layer in enumerate(model.down):
        last = kept[-1]
        if isinstance(layer, Block):
            kept.append(replace(last, channels=layer.outputs))
        else:
            taps, stride = _taps(f"down.{index}", layer)
            kept.append(Buffer(last.height // stride, last.width // stride, len(taps)))
    joints = []
    for block in model.up:
        if not isinstance(block, Block):
            continue
        own, channels = kept.pop(), block.norm1.num_channels
        buffer, above = graph.buffer(replace(own, channels=channels)), channels - own.channels
        parts = (graph.part(buffer, *part) for part in ((0, above), (above, own.channels), (0, channels)))
        joints.append(_Joint(*parts))
    return joints


def _block(lowering: _Lowering, name: str, block: Block, x: int, film_offset: int, target: int | None) -> int:
    other = x
    if not isinstance(block.skip, nn.Identity):
        other = lowering.convolve(f"{name}.skip", block.skip, x)
    norm1 = Prepare(f"{name}.norm1", block.norm1, silu=True)
    norm2 = Prepare(f"{name}.norm2", block.norm2, film_offset, silu=True)
    h = lowering.convolve(f"{name}.conv1", block.conv1, x, norm1)
    if isinstance(block.attention, nn.Identity):
        return lowering.convolve(f"{name}.conv2", block.conv2, h, norm2, other=other, target=target)
    h = lowering.convolve(f"{name}.conv2", block.conv2, h, norm2, other=other)
    return lowering.attend(f"{name}.attention", _expect(f"{name}.attention", block.attention, Attention), h, target)


# ---- weights
def _taps(name: str, module: nn.Module) -> tuple[Floats, int]:
    """The weights (outputs, inputs, height, width) of a convolution or a linear layer, and its stride."""
    if isinstance(module, nn.Linear):
        return _array(module.weight)[:, :, None, None], 1
    convolution: nn.Conv2d = _expect(name, module, nn.Conv2d)
    size, stride = convolution.kernel_size, convolution.stride
    known = (size, stride) in (((1, 1), (1, 1)), ((3, 3), (1, 1)), ((3, 3), (2, 2)))
    bordered = convolution.padding == (size[0] // 2,) * 2 and convolution.padding_mode == "zeros"
    if not (known and bordered and convolution.dilation == (1, 1) and convolution.groups == 1):
        raise _unsupported(name, module, "1x1, or 3x3 of stride 1 or 2 with a border of zeros, no groups, no dilation")
    return _array(convolution.weight), stride[0]


def _bias(module: Any, outputs: int) -> Floats:
    return np.zeros(outputs, np.float32) if module.bias is None else _array(module.bias)


def _array(values: Tensor) -> Floats:
    return values.detach().float().numpy()


def _expect(name: str, module: Any, kind: type[nn.Module]) -> Any:
    if not isinstance(module, kind):
        raise _unsupported(name, module, kind.__name__)
    return module


def _unsupported(name: str, module: nn.Module, expected: str) -> InvalidInput:
    found = " ".join(str(module).split())
    return InvalidInput(f"{name} is {found}; the native engine expects {expected} there: take --to onnx")
