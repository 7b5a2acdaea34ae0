"""Prophesee's files begin alike: header lines with ``%``. What they say decides between EVT2, EVT3 and DAT."""

from __future__ import annotations

import re

from snn_core.datasets.readers.dat import open_dat
from snn_core.datasets.readers.event_file import EventFile, OpenedEvents, checked_size
from snn_core.datasets.readers.evt2 import open_evt2
from snn_core.datasets.readers.evt3 import open_evt3


def open_prophesee(file: EventFile) -> OpenedEvents:
    """Open an EVT2, EVT3 or DAT file by its header. DataError: another encoding, or what the readers refuse."""
    lines = file.header_lines(b"%", (b"% end",))
    text = "\n".join(lines)
    encoding = re.search(r"^% (?:evt |format EVT)(\d)(?:\.(\d))?", text, re.MULTILINE)
    if encoding is None:
        return open_dat(file, lines)
    version = (encoding.group(1), encoding.group(2) or "0")
    if version not in (("2", "0"), ("3", "0")):
        raise file.error(0, f"Prophesee's encoding EVT {'.'.join(version)}; read are 2.0 and 3.0")
    return (open_evt2 if version[0] == "2" else open_evt3)(file, _geometry(file, text))


def _geometry(file: EventFile, text: str) -> tuple[int, int] | None:
    """(width, height) from ``% geometry 1280x720`` or ``% format EVT3;height=720;width=1280``, where there."""
    found = re.search(r"^% geometry (\d{1,9})x(\d{1,9})", text, re.MULTILINE)
    if found:
        return checked_size(file, int(found.group(1)), int(found.group(2)), 0)
    width, height = (
        re.search(rf"^% format .*\b{name}=(\d{{1,9}})", text, re.MULTILINE) for name in ("width", "height")
    )
    return checked_size(file, int(width.group(1)), int(height.group(1)), 0) if width and height else None
