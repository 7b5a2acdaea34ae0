"""Entry point: builds the application, turns the package's errors into messages and exit codes.

Exit codes: 0 success; 2 usage, argument or configuration; 3 data; 4 checkpoint or product; 5 backend; 6 non-finite
values; 7 storage; 130 interrupted; 1 anything else of ours. A bug keeps its traceback.
"""

from __future__ import annotations

import functools
import sys

import typer

import snn_core
from snn_core.cli import common
from snn_core.errors import InterruptedRunError, SnnCoreError

app = typer.Typer(
    name="snn",
    help="Prune spiking neural networks from scratch, distill event datasets, run sparse spiking kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        print(f"snn-core {snn_core.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print and exit."),
) -> None:
    pass


@functools.cache  # run() may be called again in one process
def _register() -> None:
    from snn_core.cli.data import app as data
    from snn_core.cli.demo import demo
    from snn_core.cli.distill import distill
    from snn_core.cli.doctor import doctor
    from snn_core.cli.evaluate import evaluate
    from snn_core.cli.events import app as events
    from snn_core.cli.prune import prune
    from snn_core.cli.report import report
    from snn_core.cli.show import show
    from snn_core.cli.train import train

    for command in (train, prune, distill, evaluate, show, report, doctor, demo):
        app.command()(command)
    app.add_typer(data)
    app.add_typer(events)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; always exits."""
    _register()
    try:
        app(arguments)
    except InterruptedRunError as error:
        _say_how_to_go_on(str(error))
        sys.exit(error.exit_code)
    except SnnCoreError as error:
        print(f"snn: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_how_to_go_on("interrupted")
        sys.exit(InterruptedRunError.exit_code)


def _say_how_to_go_on(message: str) -> None:
    print(f"snn: {message}", file=sys.stderr)
    if common.current_job is not None and common.current_job.resume_arguments:
        print(f"snn: go on with: snn {common.current_job.resume_arguments}", file=sys.stderr)


if __name__ == "__main__":
    run()
