"""A whole sampler under onnxruntime alone: noise and labels in, uint8 pictures out. Neither pyflow nor torch is here.

python examples/deploy/plain.py FOLDER/sampler.engine/sampler-4.onnx
"""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
batch, channels, height, width = session.get_inputs()[0].shape
noise = np.random.default_rng(0).standard_normal((8, channels, height, width), dtype=np.float32)
(images,) = session.run(["images"], {"noise": noise, "label": np.full(8, 1)})
with open("pictures.pnm", "wb") as file:  # one below the other, in a format that is a header and the bytes
    file.write(f"P{'5' if channels == 1 else '6'} {width} {8 * height} 255\n".encode() + images.tobytes())
print(f"{images.dtype} {images.shape} in pictures.pnm")
