"""``snn events``: what is in an event file, converted or drawn. The format is told by content."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snn_core.cli import common

app = typer.Typer(
    name="events", help="Look into, convert and draw event files of any known format.", no_args_is_help=True
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="An event file; its format is told by content.")]


@app.command()
def info(file: FileArgument, as_json: common.JsonOption = False) -> None:
    """Print format, counts, times and ranges of an event file."""
    from rich.table import Table

    from snn_core.datasets import event_file_info

    found = event_file_info(file)
    size = f"{found.sensor_size[0]} x {found.sensor_size[1]}" if found.sensor_size else "the file does not say"
    rows = [
        ["format", found.format],
        ["size", f"{found.bytes:,} bytes"],
        ["sensor", size],
        ["events", f"{found.num_events:,} ({found.num_on:,} ON)"],
        ["time", _range(found.t_range, " us") + f", {found.duration / 1e6:.6f} s"],
        ["x", _range(found.x_range)],
        ["y", _range(found.y_range)],
        ["steps back in time", f"{found.num_backwards:,}"],
    ]
    table = Table(title=str(file), title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    common.show(found.as_dict(), table, as_json)


@app.command()
def convert(
    file: FileArgument,
    target: Annotated[Path, typer.Argument(help="Written: .npz, .h5, .bin (N-MNIST), .raw (EVT2) or .dat.")],
    format: Annotated[
        str | None, typer.Option(help="npz, hdf5, nmnist, evt2 or dat, where the suffix does not say it.")
    ] = None,
) -> None:
    """Write an event file in another format. Nothing is changed but the format; what it cannot hold is refused."""
    from snn_core.datasets import read_events, write_events

    events = read_events(file)
    write_events(target, events, format)
    print(f"{len(events):,} events written to {target}")


@app.command()
def show(
    file: FileArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Picture to write; else a window opens.")
    ] = None,
    panels: Annotated[int, typer.Option(min=1, max=64, help="Parts of equal time, one picture each.")] = 4,
) -> None:
    """Draw an event file: ON events red, OFF events blue, over parts of equal time (needs matplotlib)."""
    from snn_core.datasets import event_file_info, read_events
    from snn_core.reports.event_plot import plot_events

    figure = plot_events(read_events(file), event_file_info(file).sensor_size, panels=panels, title=file.name)
    if output is None:
        import matplotlib.pyplot as plt

        plt.show()
        return
    from snn_core.files import atomic_path

    with atomic_path(output) as temporary:
        figure.savefig(temporary, format=output.suffix.lstrip(".") or "png", dpi=120)
    print(f"drawn to {output}")


def _range(values: tuple[int, int] | None, unit: str = "") -> str:
    return f"{values[0]} .. {values[1]}{unit}" if values else "none"
