"""pyflow inside diffusers, and diffusers inside pyflow.

from pyflow.adapters import PyflowPipeline, load_teacher

PyflowPipeline.from_checkpoint("runs/student").save_pretrained("student")  # a folder in diffusers' layout
PyflowPipeline.from_pretrained("student")(batch_size=4, class_labels=3, num_inference_steps=1).images
load_teacher("ddpm-cifar10-32", clip_sample=False).sample(4, steps=200)    # a UNet2DModel in the C++ loop
"""

from ..errors import BackendUnavailable

try:
    import torch  # noqa: F401  (without it diffusers imports, and hands out empty classes)
    from diffusers import ModelMixin, SchedulerMixin  # noqa: F401  (its from_pretrained looks for the bases in here)
except ImportError as error:
    raise BackendUnavailable(
        f'pyflow.adapters needs diffusers and torch ({error}): pip install "pyflow-engine[diffusers]"'
    ) from error

from .network import PyflowNetwork
from .pipeline import PyflowPipeline
from .scheduler import PyflowScheduler
from .teacher import Teacher, load_teacher, path_of, plan_of

__all__ = ["PyflowNetwork", "PyflowPipeline", "PyflowScheduler", "Teacher", "load_teacher", "path_of", "plan_of"]
