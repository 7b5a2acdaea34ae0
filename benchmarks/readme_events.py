"""README's tables on event data: frames, epochs from disk, the simulated sets."""

from __future__ import annotations

from typing import Any


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def event_speed(result: dict[str, Any]) -> str:
    """Millions of events a second into frames, N-MNIST's recordings and one long one."""
    rows = []
    for name, ways in result["frames of N-MNIST, million events a second"].items():
        rows.append([f"N-MNIST, `{name}`", *_rates(ways, "one call, 1 thread", "one call each, 1 thread")])
    for name, ways in result["frames of a long random recording, million events a second"].items():
        rows.append([f"a long one, `{name}`", *_rates(ways, "1 thread")])
    return table(["frames", "tonic", "1 thread", "times tonic", "2 threads", "times tonic"], rows)


def _rates(ways: dict[str, float], *one_thread: str) -> list[str]:
    one = next(name for name in one_thread if name in ways)
    two = one.replace("1 thread", "2 threads")
    cells = [f"{ways['tonic']:.0f}", f"{ways[one]:.0f}", f"{ways[f'{one} / tonic']:.1f}"]
    return cells + ([f"{ways[two]:.0f}", f"{ways[f'{two} / tonic']:.1f}"] if two in ways else ["-", "-"])


def event_epochs(result: dict[str, Any]) -> str:
    """An epoch of frames from disk beside tonic's disk cache, the largest set measured."""
    largest = max(result["sets"], key=lambda entry: entry["samples"])
    rows = []
    for workers in ("0 workers", "2 workers"):
        seconds = largest[f"{workers}, an epoch"]["seconds"]
        for ours in ("open_frames", "open_frames, FrameLoader", "open_frames, kept workers"):
            peer = "tonic, kept workers" if "kept" in ours else "tonic"
            if ours in seconds and not (workers == "0 workers" and "FrameLoader" in ours):
                figures = [f"{seconds[peer]:.2f}", f"{seconds[ours]:.2f}", f"{seconds[peer] / seconds[ours]:.1f}"]
                rows.append([f"{largest['samples']:,}", workers, ours, *figures])
    return table(["samples", "DataLoader (ours: threads with FrameLoader)", "ours", "tonic s", "ours s", "times"], rows)


def simulated(result: dict[str, Any]) -> str:
    """Simulated N-MNIST beside the real recordings of the same pictures that the sensor was not fitted on."""
    group = result["groups"]["other training recordings"]
    real, sim, agreement = group["real"], group["simulated"], group["agreement"]
    rows = [
        ["events a recording", f"{real['events_mean']:,.0f}", f"{sim['events_mean']:,.0f}"],
        ["their deviation", *(f"{side['events_standard_deviation']:,.0f}" for side in (real, sim))],
        ["ON events, share", f"{real['on_fraction']:.3f}", f"{sim['on_fraction']:.3f}"],
        ["pixels that fire", f"{real['active_pixels_mean']:.0f}", f"{sim['active_pixels_mean']:.0f}"],
    ]
    notes = (
        f"Correlation between the two over {group['recordings']} pairs: number of events "
        f"{agreement['event_count_correlation']:.2f}, rate over time {agreement['rate_over_time_correlation']:.2f}, "
        f"maps of events {agreement['map_correlation_mean']:.2f} (with another real recording of the same digit "
        f"{agreement['map_correlation_with_another_real_recording_of_the_digit']:.2f})."
    )
    return table(["", "real", "nmnist-sim (simulated)"], rows) + "\n\n" + notes


def transfer(result: dict[str, Any]) -> str:
    """Accuracy of networks trained on simulated recordings and tested on real ones, and the other way round."""
    kinds = ("real test", "real train", "simulated test")
    rows = []
    for run in result["runs"]:
        shown = [f"{100 * run['accuracy'][kind]:.1f}" if kind in run["accuracy"] else "-" for kind in kinds]
        rows.append([f"{run['samples']:,} {run['trained_on']}, {run['epochs']} epochs", *shown])
    header = ["trained on", "100 real test recordings %", "750 real training recordings %", "10,000 simulated test %"]
    return table(header, rows)


def motion(result: dict[str, Any]) -> str:
    """Whether the classes of motion-sim can be told apart without time, and with it."""
    rows = []
    for name, read_outs in result["read_outs"].items():
        within = [entry["within_pair"] if isinstance(entry, dict) else entry for entry in read_outs.values()]
        rows.append([name, "linear, RBF-SVM", f"{min(within):.2f} to {max(within):.2f}", "-"])
    for order, run in result["networks"].items():
        rows.append([f"frames {order}", "conv-snn", f"{run['within_pair']:.3f}", f"{run['accuracy']:.3f}"])
    return table(["what is seen", "read-out", "accuracy within the pairs", "12 classes"], rows)


def localization(result: dict[str, Any]) -> str:
    """Average precision on moving-digits beside what needs no network."""
    names = ("mAP@0.5", "AP@0.5, classes ignored", "mAP@0.5:0.95")
    rows = [[f"no network: {name}", *(f"{run[key]:.3f}" for key in names)] for name, run in result["baselines"].items()]
    rows += [
        [f"spiking network, seed {seed}", *(f"{run[key]:.3f}" for key in names)]
        for seed, run in result["seeds"].items()
    ]
    later = [run["mAP@0.5 when each step ends"] for run in result["seeds"].values()]
    means = ", ".join(f"{sum(step) / len(step):.2f}" for step in zip(*later, strict=True))
    first = next(iter(result["seeds"].values()))
    notes = (
        f"mAP@0.5 of the seeds' mean when each of the {result['setting']['T']} steps ends: {means}. "
        f"{first['parameters'] / 1e3:.0f} thousand parameters, {result['setting']['epochs']} epochs."
    )
    return table(["test part", *names], rows) + "\n\n" + notes
