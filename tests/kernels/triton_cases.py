"""Cases for Triton's interpreter, on a machine without a GPU. No test file: those that use it are test_*.py beside it.

The interpreter is chosen when triton is imported, so the cases of a test file run in one process of their own (this
file as a script, with the name of that module), which reports case by case.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
#: The case that a file plants, to show that a difference is seen and reported.
PLANTED = "planted_failure"


class Cases:
    """The cases of a test file, as its ``CASES``.

    Args:
        module: the file's ``__name__``.
        prepare: called once in the process of the cases.
    """

    def __init__(self, module: str, prepare: Callable[[], None] | None = None) -> None:
        self.module, self._prepare = module.rpartition(".")[2], prepare
        self._functions: dict[str, Callable[[], None]] = {}

    def add(self, function: Callable[..., None], *arguments: Any) -> Callable[..., None]:
        """One case more, named after the function and its arguments; also a decorator."""
        name = "-".join([function.__name__, *(str(a).replace("torch.", "") for a in arguments)])
        assert name not in self._functions, name
        self._functions[name] = lambda: function(*arguments)
        return function

    @property
    def names(self) -> list[str]:
        """All but the planted one."""
        return [name for name in self._functions if name != PLANTED]

    def reports(self) -> dict[str, str]:
        """Run all in a process of their own: name -> traceback, empty where all is well."""
        pytest.importorskip("triton")
        environment = os.environ | {"TRITON_INTERPRET": "1", "SNN_BACKEND": ""}
        command = [sys.executable, str(FOLDER / "triton_cases.py"), self.module]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        line = next((line for line in done.stdout.splitlines() if line.startswith("REPORT")), None)
        assert line is not None, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        found: dict[str, str] = json.loads(line.removeprefix("REPORT"))
        assert found.keys() == self._functions.keys()
        return found

    def run(self) -> None:
        """In that process: all cases, and their reports on standard output."""
        torch.set_num_threads(1)
        if self._prepare is not None:
            self._prepare()
        reports = {}
        for name, function in self._functions.items():
            try:
                function()
                reports[name] = ""
            except BaseException:
                reports[name] = traceback.format_exc()
        print("REPORT" + json.dumps(reports))


def main() -> None:
    """The tests are no package; here they look like one, as pytest makes them."""
    for name, folder in (("tests", FOLDER.parent), ("tests.kernels", FOLDER)):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    sys.modules["tests.kernels.triton_cases"] = sys.modules["__main__"]
    importlib.import_module(f"tests.kernels.{sys.argv[1]}").CASES.run()


if __name__ == "__main__":
    main()
