"""matplotlib figures as SVG inside a page: no file, no reference to anything outside, colours of the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from snn_core.errors import ArgumentError

#: What figures are drawn with, and the CSS that the page puts in its place: text and lines follow light and dark.
INK, MUTED, GRID = "#1b1f24", "#667080", "#d8dde3"
SERIES = ("#2a6fb0", "#c2601a", "#2f8552", "#7d52a8", "#b03a56", "#5d6670")
_THEME = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)
}


def new_figure(width: float, height: float, margins: Sequence[float] | None = None) -> Any:
    """An empty matplotlib figure of that size in inches, transparent, that no window knows of.

    Args:
        width, height: in inches.
        margins: left, right, bottom, top, and between the panels across and down, in inches; None: as wide as the
            texts need, which matplotlib finds out by drawing the figure twice.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(f"drawing needs matplotlib: pip install 'snn-core[plots]' ({error})") from error
    figure = Figure(figsize=(width, height), layout="constrained" if margins is None else None, facecolor="none")
    if margins is not None:
        left, right, bottom, top, _, _ = margins
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure


def panel_grid(figure: Any, rows: int, columns: int, margins: Sequence[float]) -> Any:
    """``rows`` x ``columns`` panels of equal size with the spaces of ``margins``, for ``add_subplot(grid[i])``."""
    width, height = figure.get_size_inches()
    left, right, bottom, top, across, down = margins
    panel_width = (width - left - right - across * (columns - 1)) / columns
    panel_height = (height - bottom - top - down * (rows - 1)) / rows
    return figure.add_gridspec(rows, columns, wspace=across / panel_width, hspace=down / panel_height)


def style(axes: Any, title: str = "", *, grid: str = "y") -> None:
    """The look of every panel: no frame on top and right, a quiet grid (``"x"``, ``"y"`` or ``""``)."""
    axes.set_facecolor("none")
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", fontweight="bold")
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)


def to_svg(figure: Any, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page.

    Args:
        figure: matplotlib's, drawn with the colours of this module; others stay as they are.
        name: letters, digits and dashes; told apart from the page's other figures by it (their ids begin with it).
        label: what the figure shows, for those who do not see it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    # Text stays text: it can be searched and copied, takes the page's font, and is small.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # HTML knows the namespaces of svg
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for color, css in _THEME.items():
        text = text.replace(color, css)
    # One font for all figures, named once in the page's style sheet.
    text = re.sub(r"font: ((?:[\w.]+ )*[\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
