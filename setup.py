"""Builds `pyflow._C` with CMake; everything else about the package is in pyproject.toml."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Folders at the top level that install inside the package: the bare name `kernels` is taken on PyPI.
MAPPED = {"pyflow.kernels": "kernels", "pyflow.training": "training"}


def packages() -> list[str]:
    """Every package on disk, under the name that it is imported by."""
    found = find_packages(str(ROOT), include=["pyflow", "pyflow.*"])
    for name, folder in MAPPED.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return found


class CMakeBuild(build_ext):
    """Runs CMake with Ninja. `CMAKE_ARGS` in the environment is passed on, e.g. -DPYFLOW_WERROR=ON."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # cmake and ninja from the environment that runs this file are found even when it is not activated
        environment = os.environ | {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")}
        configure = [
            *("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=environment)


setup(
    packages=packages(),
    package_dir={"pyflow": "pyflow", **MAPPED},
    package_data={"pyflow": ["_C.pyi", "py.typed"]},
    ext_modules=[Extension("pyflow._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
