"""README says what the committed results say, and its Python examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_tables_come_from_the_results() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks/readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks in order, in one namespace, with fewer recordings and steps than a reader would take."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    smaller = {
        "limit=300": "limit=100",
        "epochs=10": "epochs=1",
        "[16, 32, 32]": "[4, 8, 8]",
        "DistillConfig(ipc=1)": "DistillConfig(ipc=1, iterations=2, teachers={'count': 1, 'training': {'epochs': 1}})",
    }
    code = "\n".join(blocks)
    for text, replacement in smaller.items():
        assert code.count(text) == 1, text
        code = code.replace(text, replacement)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert len(namespace["small"]) == 10
