"""``snn distill``: condense a real training set into a small synthetic one (PACE), or select one at random."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from snn_core.cli import common
from snn_core.distillation import create_method, train_teachers, write_product

PRODUCT_FILE = "product.h5"
STATE_FILE = "distill_state.safetensors"


def distill(
    data: common.DataOption = None,
    config: common.ConfigOption = None,
    method: Annotated[str | None, typer.Option(help="pace, or a comparison: random, herding.")] = None,
    ipc: Annotated[int | None, typer.Option(help="Synthetic samples per class.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None,
    time_steps: common.StepsOption = None,
    seed: common.SeedOption = None,
    assignments: common.SetOption = None,
    output: common.OutputOption = None,
    resume: common.ResumeOption = False,
    device: common.DeviceOption = "cpu",
    as_json: common.JsonOption = False,
) -> None:
    """Distil an event dataset; writes product.h5, which loads as a torch Dataset."""
    overrides = {
        "data.source": data, "distill.method": method, "distill.ipc": ipc, "distill.iterations": iterations,
        "data.T": time_steps, "seed": seed,
    }  # fmt: skip
    job = common.start_job(
        "distill", config=config, overrides=overrides, assignments=assignments, output=output, resume=resume,
        as_json=as_json, device=device,
    )  # fmt: skip
    train_set, test_set = common.load_data(job)
    condense = create_method(job.config.distill.method)
    settings = job.config.distill_config()
    teachers = None
    if condense.needs_teachers:
        teachers = train_teachers(
            train_set, settings.teachers, seed=job.config.seed, quiet=job.quiet, device=device,
            cache_dir=job.config.data.cache_dir,
        )  # fmt: skip
    state = job.output / STATE_FILE
    # Interrupted while the teachers were trained there is no state yet: the teachers resume from their own cache.
    product = condense(
        train_set, settings, teachers=teachers, seed=job.config.seed, state_path=state,
        resume=resume and state.is_file(), quiet=job.quiet, device=device,
    )  # fmt: skip
    path = job.output / PRODUCT_FILE
    write_product(path, product)
    provenance = product.provenance
    report: dict[str, Any] = {
        "data": common.describe(train_set, test_set),
        "method": condense.name,
        "ipc": settings.ipc,
        "product": str(path),
        "samples": len(product),
        "frame_bytes": product.num_bytes,
        "full_frame_bytes": train_set.frames.numel(),
        "file_bytes": path.stat().st_size,
        "seconds": provenance.seconds,
        "teacher_seconds": provenance.teacher_seconds,
    }
    rows = [
        ["data", str(train_set.name)],
        ["method", f"{condense.name}, {settings.ipc} per class"],
        ["samples, distilled / full", f"{len(product)} / {len(train_set)}"],
        ["bytes of frames", f"{product.num_bytes:,} / {train_set.frames.numel():,}"],
        ["distillation", f"{provenance.seconds:.1f} s (teachers: {provenance.teacher_seconds:.1f} s)"],
        ["product", str(path)],
    ]
    job.finish(report, common.make_table("Distilled dataset", ["", "value"], rows))
