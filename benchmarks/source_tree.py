"""Make ``snn_core`` importable from this checkout where it is not installed. Needs the standard library alone."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use_source_tree() -> None:
    """Where no installed ``snn_core`` has its kernels, put a folder of links to this checkout on the path.

    Child processes inherit it through PYTHONPATH.
    """
    with contextlib.suppress(ImportError):
        # Looking for a submodule imports its parent, which fails in a bare checkout.
        if importlib.util.find_spec("snn_core.kernels"):
            return
    package = Path(tempfile.mkdtemp(prefix="snn_core_tree_")) / "snn_core"
    atexit.register(shutil.rmtree, package.parent, ignore_errors=True)
    package.mkdir()
    for source in [*(ROOT / "snn_core").iterdir(), ROOT / "kernels", ROOT / "datasets"]:
        (package / source.name).symlink_to(source)
    sys.path.insert(0, str(package.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    for name in [name for name in sys.modules if name.split(".")[0] == "snn_core"]:
        del sys.modules[name]


use_source_tree()
