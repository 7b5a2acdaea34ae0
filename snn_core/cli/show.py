"""``snn show``: what a distilled set looks like, and its spectra along time beside the real data's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from snn_core.datasets import FrameDataset, load_frames
from snn_core.distillation import DistilledDataset
from snn_core.errors import ArgumentError
from snn_core.files import atomic_path

PICTURES = (".png", ".svg", ".pdf", ".gif")


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A product of 'snn distill' (.h5).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Picture to write: .png, .svg, .pdf, or .gif, which moves.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Samples of every class that are drawn.")] = 1,
    spectra: Annotated[
        bool, typer.Option("--spectra", help="Amplitude and phase along time beside the real data's instead.")
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="The real data for --spectra: a data set's name, or a folder or zip.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Real recordings for --spectra, a stratified part.")] = 600,
) -> None:
    """Draw a distilled set: a row a class, a column a time step (needs matplotlib)."""
    from snn_core.reports.product_plot import plot_grid, plot_spectra, write_gif

    output = output or file.with_suffix(".png")
    kind = output.suffix.lower()
    if kind not in PICTURES or (spectra and kind == ".gif"):
        raise ArgumentError(f"--output {output}: allowed are {', '.join(PICTURES)}, no .gif of spectra")
    stored = DistilledDataset.load(file)
    title = f"{stored.provenance.method}, {stored.provenance.ipc} a class, from {stored.provenance.source_name}"
    product = stored.decoded()
    chosen = torch.cat([torch.nonzero(product.labels == k).flatten()[:per_class] for k in product.labels.unique()])
    names = [product.class_names[label] for label in product.labels[chosen].tolist()]
    frames = product.frames[chosen].numpy()
    if spectra:
        real = _real(product, data, limit)
        figure = plot_spectra(
            product.frames.numpy(), product.labels.numpy(), real.frames.numpy(), real.labels.numpy(),
            product.class_names, title=title,
        )  # fmt: skip
    elif kind != ".gif":
        figure = plot_grid(frames, names, title=title)
    with atomic_path(output) as temporary:
        if kind == ".gif":
            write_gif(temporary, frames, names)
        else:
            figure.savefig(temporary, format=kind[1:], dpi=110)
    print(f"drawn to {output}")


def _real(product: FrameDataset, data: str | None, limit: int) -> FrameDataset:
    """Real recordings as frames of the product's T."""
    if data is None:
        raise ArgumentError(f"--spectra needs --data; the real data of: {product.name}")
    real = load_frames(data, "train", T=product.T, limit=limit)
    if real.class_names != product.class_names:
        raise ArgumentError(f"--data {data}: its classes are not the product's")
    return real
