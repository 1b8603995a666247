"""A native network by definition: its operations in NumPy, one picture beside the other, from the bytes of its file.

What is bfloat16 or uint8 in the engine is rounded here too; all else is of the `dtype` that is asked for.
"""

import numpy as np

from pyflow.engines.graph import BUFFER, HEADER, NO_WEIGHTS, NONE, OPERATION, TENSOR, Algorithm, Kind, Type
from pyflow.export.packing import NARROW_PANEL, PANEL, STEP, bfloat16

DTYPES = {Type.F32: np.float32, Type.BF16: np.uint16, Type.S8: np.int8}
TILES = {Algorithm.WINOGRAD2: (2, 2), Algorithm.WINOGRAD4: (4, 4), Algorithm.WINOGRAD2X4: (2, 4)}


def _toom_cook(*points):
    """G, B^T and A^T of Winograd's algorithm: a product of polynomials by its values at these points and infinity."""
    others = [[other for other in points if other != point] for point in points]
    norms = [np.prod(np.subtract(point, rest)) for point, rest in zip(points, others)]
    filters = [[point**k / abs(norm) for k in range(3)] for point, norm in zip(points, norms)]
    inputs = [np.sign(norm) * np.array([*np.poly(rest)[::-1], 0]) for rest, norm in zip(others, norms)]
    outputs = [[point**k for point in points] + [k == len(points) - 2] for k in range(len(points) - 1)]
    return np.array([*filters, [0, 0, 1]]), np.array([*inputs, np.poly(points)[::-1]]), np.array(outputs)


TRANSFORMS = {2: _toom_cook(0, 1, -1), 4: _toom_cook(0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}


def rounded(values):
    """To bfloat16 and back."""
    return widened(bfloat16(np.asarray(values, np.float32))).astype(values.dtype)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


class Reference:
    def __init__(self, content: bytes, dtype=np.float64):
        self.dtype = dtype
        (self.header,) = np.frombuffer(content, HEADER, 1)
        tables, end = [], HEADER.itemsize
        for layout, name in ((BUFFER, "buffers"), (TENSOR, "tensors"), (OPERATION, "operations")):
            tables.append(np.frombuffer(content, layout, self.header[name], end))
            end += layout.itemsize * int(self.header[name])
        self.buffers, self.tensors, self.operations = tables
        self.weights = content[int(self.header["weights_offset"]) :]

    def __call__(self, x, s, t, label):
        """The prediction for states (batch, *shape), with what the network is told beside them."""
        self.given = x.reshape(len(x), -1, self.header["height"], self.header["width"])
        self.times, self.labels = (s, t)[: self.header["times"]], label
        self.memory = [
            np.full((len(x), b["height"], b["width"], b["channels"]), np.nan, self.dtype) for b in self.buffers
        ]
        for operation in self.operations:
            made = getattr(self, Kind(operation["kind"]).name.lower())(operation)
            if operation["output"] != NONE:
                self.view(operation["output"])[...] = made
        prediction = made.transpose(0, 3, 1, 2)
        return prediction if x.ndim == 4 else prediction.reshape(len(x), -1)

    def view(self, tensor):
        buffer, offset, channels = self.tensors[tensor]
        return self.memory[buffer][..., offset : offset + channels]

    def array(self, offset, count, type=Type.F32):
        return np.frombuffer(self.weights, DTYPES[type], count, int(offset))

    # ---- one method a kind
    def load(self, operation):
        return self.given.transpose(0, 2, 3, 1)

    def store(self, operation):
        return self.view(operation["input"])

    def waves(self, operation):
        waves, phases = (self.array(operation[name], 64) for name in ("weights", "bias"))
        # The angle in float32, as in the engine and in torch: at 100 radians its rounding is seen.
        angles = [(time[:, None] * waves + phases).astype(self.dtype) for time in self.times]
        return np.sin(np.concatenate(angles, 1))[:, None, None]

    def label(self, operation):
        channels, rows = int(self.tensors[operation["output"]]["channels"]), int(self.header["classes"]) + 1
        table = self.array(operation["weights"], rows * channels).reshape(rows, channels)
        return table[self.labels][:, None, None]

    def prepare(self, operation):
        y, channels = self.view(operation["input"]), self.tensors[operation["input"]]["channels"]
        if operation["groups"]:
            grouped = y.reshape(len(y), -1, operation["groups"], channels // operation["groups"])
            mean = grouped.mean((1, 3), keepdims=True)
            variance = np.square(grouped - mean).mean((1, 3), keepdims=True)
            normed = ((grouped - mean) / np.sqrt(variance + operation["epsilon"])).reshape(y.shape)
            y = normed * self.array(operation["weights"], channels) + self.array(operation["bias"], channels)
        if operation["other"] != NONE:
            film = self.view(operation["other"])[..., operation["film_offset"] :]
            y = y * (1 + film[..., :channels]) + film[..., channels : 2 * channels]
        y = silu(y) if operation["silu"] else y
        for axis in (1, 2):
            y = y.repeat(operation["upsample"], axis)
        type = self.buffers[self.tensors[operation["output"]]["buffer"]]["type"]
        if type == Type.U8:
            return np.clip(np.rint(y / operation["scale"]) + operation["zero"], 0, 255)
        return rounded(y) if type == Type.BF16 else y

    def convolve(self, operation):
        x, outputs = self.view(operation["input"]), int(self.tensors[operation["output"]]["channels"])
        algorithm = Algorithm(operation["algorithm"])
        if algorithm != Algorithm.DIRECT and operation["weights_type"] == Type.BF16:
            y = self.winograd(x, operation, outputs, *TILES[algorithm])
        else:
            y = self.direct(x, self.taps(operation, x.shape[-1], outputs, operation["taps"] ** 2), operation)
        if operation["scales"] != NO_WEIGHTS:
            y = y * self.array(operation["scales"], outputs)
        y = y + self.array(operation["bias"], outputs)
        if operation["other"] != NONE:
            y = y + self.view(operation["other"])
        return silu(y) if operation["silu"] else y

    def attend(self, operation):
        qkv, heads = self.view(operation["input"]), operation["heads"]
        batch, height, width, channels = qkv.shape
        q, k, v = qkv.reshape(batch, height * width, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        likely = np.exp(scores - scores.max(-1, keepdims=True))
        attended = likely / likely.sum(-1, keepdims=True) @ v
        return attended.transpose(0, 2, 1, 3).reshape(batch, height, width, channels // 3)

    # ---- convolutions
    def taps(self, operation, inputs, outputs, taps):
        """The packed weights as (taps, inputs, outputs)."""
        type = Type(operation["weights_type"])
        q, offset, panels, left = STEP[type], int(operation["weights"]), [], outputs
        rows = -(-inputs // q)
        while left > 0:
            width = NARROW_PANEL if left <= NARROW_PANEL else PANEL
            panel = self.array(offset, taps * rows * width * q, type).reshape(taps, rows, width, q)
            panel = widened(panel) if type == Type.BF16 else panel
            whole = panel.transpose(0, 1, 3, 2).reshape(taps, rows * q, width)
            assert not whole[:, inputs:].any()
            assert not whole[..., left:].any()
            panels.append(whole[:, :inputs])
            offset, left = offset + panel.size * {1: 4, 2: 2, 4: 1}[q], left - width
        return np.concatenate(panels, 2)[..., :outputs].astype(self.dtype)

    def direct(self, x, taps, operation):
        if operation["taps"] == 1:
            return x @ taps[0]
        stride, (batch, height, width, _) = operation["stride"], x.shape
        padded = self.bordered(x, operation)
        y = np.zeros((batch, height // stride, width // stride, taps.shape[2]), self.dtype)
        for tap, weights in enumerate(taps):
            top, left = divmod(tap, 3)
            y += padded[:, top : top + height : stride, left : left + width : stride] @ weights
        return y

    def bordered(self, x, operation):
        """With a border of what stands for 0: the zero of the operation that made a uint8."""
        (maker,) = (o for o in self.operations if o["output"] == operation["input"])
        zero = maker["zero"] if operation["weights_type"] == Type.S8 else 0
        return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=zero)

    def winograd(self, x, operation, outputs, rows, columns):
        """Its transformed inputs and weights are bfloat16; the file holds the taps, or of F(2,3) every position."""
        batch, height, width, inputs = x.shape
        (down, from_rows, to_rows), (across, from_columns, to_columns) = TRANSFORMS[rows], TRANSFORMS[columns]
        shape = rows + 2, columns + 2
        if operation["algorithm"] == Algorithm.WINOGRAD2:
            weights = self.taps(operation, inputs, outputs, 16).reshape(*shape, inputs, outputs)
        else:
            taps = self.taps(operation, inputs, outputs, 9).reshape(3, 3, inputs, outputs)
            weights = rounded(np.einsum("ia,jb,abco->ijco", down, across, taps))
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = np.empty((batch, height, width, outputs), self.dtype)
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                tile = padded[:, top : top + shape[0], left : left + shape[1]]
                moved = rounded(np.einsum("ia,jb,nabc->nijc", from_rows, from_columns, tile))
                products = np.einsum("nijc,ijco->nijo", moved, weights)
                made = np.einsum("ai,bj,nijo->nabo", to_rows, to_columns, products)
                y[:, top : top + rows, left : left + columns] = made
        return y
