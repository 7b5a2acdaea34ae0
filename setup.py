"""Build of the native libraries and the mapping of kernels/ and datasets/ under ``snn_core``.

Everything declarative is in pyproject.toml. Without a C++ compiler, without nvcc or without torch's headers the package
installs all the same and says what is missing; ``snn doctor`` repeats it, and ``python -m snn_core.kernels.native``
builds later. ``SNN_BUILD_CUDA=0`` leaves the CUDA library out where nvcc is found.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import FileError

ROOT = Path(__file__).parent


def load_build_script():
    """kernels/native/build.py as a module, without importing the package (torch may not be importable here)."""
    specification = importlib.util.spec_from_file_location("native_build", ROOT / "kernels/native/build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def mapped_packages():
    """Package name -> folder: snn_core and its parts, with kernels/ and datasets/ mapped under it."""
    packages = {name: name.replace(".", "/") for name in ["snn_core", *prefixed("snn_core")]}
    for folder in ("kernels", "datasets"):
        packages[f"snn_core.{folder}"] = folder
        packages |= {f"snn_core.{name}": name.replace(".", "/") for name in prefixed(folder)}
    return packages


def prefixed(folder):
    return [f"{folder}.{name}" for name in find_packages(folder)]


class BuildNative(build_ext):
    """Compiles with kernels/native/build.py instead of setuptools' own single-flag-set rules."""

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, extension):
        native = load_build_script()
        output = Path(self.get_ext_fullpath(extension.name))
        if extension.name.endswith("_cuda"):
            self.build_cuda(native, output)
            return
        try:
            native.build(output)
        except native.BuildError as error:
            print(
                f"\nsnn-core: installing WITHOUT the native CPU library: {error}\n"
                "snn-core: everything works on the plain torch backend, slower. To build it later:\n"
                "snn-core:     python -m snn_core.kernels.native\n",
                file=sys.stderr,
            )

    def build_cuda(self, native, output):
        """Where nvcc is found; its absence is no fault of a machine without a GPU, so it takes one line."""
        if os.environ.get("SNN_BUILD_CUDA") == "0":
            print("snn-core: installing without the CUDA library: SNN_BUILD_CUDA=0", file=sys.stderr)
            return
        try:
            native.build_cuda(output)
        except native.BuildError as error:
            print(f"snn-core: installing without the CUDA library: {error}", file=sys.stderr)

    def copy_extensions_to_source(self):
        native = load_build_script()
        for extension in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(extension.name)
            if not built.is_file():
                continue
            try:
                self.copy_file(str(built), str(native.LIBRARY_PATH.with_name(built.name)))
            except (OSError, FileError) as error:  # the other library may still be copied
                print(f"snn-core: {built.name} was not installed: {error}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """The library depends on the platform but on no Python version."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


packages = mapped_packages()
setup(
    packages=sorted(packages),
    package_dir=packages,
    package_data={
        "": ["*.h", "*.cpp", "*.cu", "*.cuh", "py.typed"],
    },
    ext_modules=[Extension(f"snn_core.kernels.native.{name}", sources=[]) for name in ("_cpu", "_cuda")],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
