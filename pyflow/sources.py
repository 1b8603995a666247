"""A teacher by its folder: an engine or checkpoint, or what diffusers saved."""

from pathlib import Path

from .loading import load
from .sampler import Flow


def open_source(folder: Path, threads: int = 0, device: str = "cpu") -> Flow:
    """What `load` opens, or the folder of a DDIMPipeline or DDPMPipeline, which needs diffusers and torch."""
    if (folder / "model_index.json").is_file():
        from .adapters import load_teacher

        return load_teacher(folder, threads=threads, device=device)
    return load(folder, threads=threads, device=device)
