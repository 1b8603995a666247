"""AOTInductor engines: a denoiser compiled ahead of time. This needs a C++ compiler; running the package does not."""

import io
import os
import shutil
import warnings
import zipfile

import torch
from torch import Tensor, nn

from pyflow.engines import elf, host
from pyflow.engines.aoti import PACKAGE
from pyflow.engines.manifest import DENOISER
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.spec import Spec

from .build import BATCH_LIMIT, Built, Order
from .shapes import DTYPES, Denoiser

INPUT_DTYPES = {"x": torch.float32, "s": torch.float32, "t": torch.float32, "label": torch.int64}


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    if order.what != DENOISER:
        raise InvalidInput(f"what is {order.what!r}; expected {DENOISER}, or --to onnx: here the C++ loop is the step")
    if order.precision not in DTYPES:
        raise InvalidInput(f"precision is {order.precision!r}; expected one of {', '.join(DTYPES)}, or --to onnx")
    cuda = order.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise BackendUnavailable("device is 'cuda' and torch sees no GPU; export where the engine will run")
    # The UNet of 1.4M, one thread, batch 16: fp32 76 ms and bf16 60 ms as it comes, 39 and 29 ms with channels last.
    denoiser = Denoiser(model, spec, DTYPES[order.precision])
    denoiser = denoiser.to(order.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    examples = tuple(example.to(order.device) for example in denoiser.examples(spec))
    package = build_package(denoiser, examples, denoiser.names)
    needs = {"gpu": host.gpu()} if cuda else {}
    return Built({PACKAGE: package}, {"cpu": host.cpu_flags(), "torch": host.release("torch"), **needs})


class _Ordered(nn.Module):
    """Any module as one that takes its inputs by place, which is how its dynamic axes are told."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)


def build_package(
    module: nn.Module, examples: tuple[Tensor, ...], names: tuple[str, ...], *, threads: int | None = None
) -> bytes:
    """A .pt2 package of the module, for any batch: axis 0 of every input, 2 or more in the examples.

    The package runs on CPUs with this one's vector instructions and always with `threads`, by default torch's number.
    """
    from torch._inductor import aoti_compile_and_package  # a second to import, for those who compile
    from torch._inductor.utils import fresh_cache

    _refuse(examples, names)
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BackendUnavailable(f"AOTInductor needs a C++ compiler and found no {compiler}: install g++")
    batch = torch.export.Dim("batch", min=1, max=BATCH_LIMIT)
    content = io.BytesIO()
    with fresh_cache(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            _Ordered(module).eval(), examples, dynamic_shapes={"inputs": tuple({0: batch} for _ in names)}
        )
        aoti_compile_and_package(
            program,
            package_path=content,
            inductor_configs=_settings(names, examples[names.index("x")], threads or torch.get_num_threads()),
        )
    return _with_plain_stack(content.getvalue())


def _settings(names: tuple[str, ...], x: Tensor, threads: int) -> dict[str, object]:
    from torch._inductor import config

    settings = {
        # What compiled code does not check, `engines.aoti` compares with the manifest.
        "aot_inductor.metadata": {"inputs": " ".join(names), "shape": " ".join(map(str, x.shape[1:]))},
        "cpp.threads": threads,
        # The vector flags alone, as the manifest lists them; -march=native was no faster (UNet, 1.4M, batch 1 and 16).
        "cpp.march": "",
        # A batch of 1 would be refused under AOTI_RUNTIME_CHECK_INPUTS, though it is right.
        "aot_inductor.check_lowerbound": False,
        # The kernels of a GPU inside the library, so that one file is the network.
        "aot_inductor.embed_kernel_binary": True,
        # Half of the package of a small network, for debuggers.
        "aot_inductor.enable_line_tables": False,
    }
    known = config.get_config_copy()
    return {name: value for name, value in settings.items() if name in known}


def _refuse(examples: tuple[Tensor, ...], names: tuple[str, ...]) -> None:
    if (
        "x" not in names
        or len(set(names)) < len(names)
        or not {*names} <= {*INPUT_DTYPES}
        or len(names) != len(examples)
    ):
        raise InvalidInput(
            f"names is {names!r} for {len(examples)} examples; expected x and any of s, t, label, each once"
        )
    batch = len(examples[names.index("x")])
    for name, example in zip(names, examples):
        fits = example.dtype == INPUT_DTYPES[name] and len(example) == batch and (example.ndim == 1) != (name == "x")
        if not fits or batch < 2 or not example.is_contiguous():
            shape = "one value a picture" if name != "x" else "and the shape of a picture"
            raise InvalidInput(
                f"the example of {name} is {example.dtype} {tuple(example.shape)}; expected contiguous "
                f"{INPUT_DTYPES[name]} with a batch of 2 or more, {shape}"
            )


def _with_plain_stack(package: bytes) -> bytes:
    """The package with a library that asks for no executable stack.

    Inductor assembles the weights without a word on the stack, so the linker asks for an executable one: glibc 2.41
    refuses to open such a library, and before it makes the stacks of the whole process executable.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(content, "w") as new:
        for info in old.infolist():
            member = old.read(info)
            new.writestr(info, elf.with_plain_stack(member) if info.filename.endswith(".so") else member)
    return content.getvalue()
