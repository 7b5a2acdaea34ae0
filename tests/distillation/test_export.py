"""The product as events and as SpikingJelly's folders: what comes back is what went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snn_core.datasets import load_spikingjelly_frames
from snn_core.distillation import DistilledEvents, frames_to_events, write_spikingjelly_frames
from snn_core.errors import ArgumentError
from tests.distillation.conftest import make_bars


def counted(events: np.ndarray, shape: tuple[int, ...], window: int) -> np.ndarray:
    frames = np.zeros(shape, np.int64)
    np.add.at(frames, (events["t"] // window, events["p"], events["y"], events["x"]), 1)
    return frames


@pytest.mark.parametrize("window", [255, 1000, 77_777])
def test_events_counted_in_windows_are_the_frames(window):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 4, (3, 2, 5, 7), generator=generator).to(torch.uint8)
    frames[1] = 0
    frames[2, 1, 4, 6] = 255
    events = frames_to_events(frames, window)
    assert events.dtype.names == ("x", "y", "t", "p")
    assert len(events) == int(frames.sum())
    assert (np.diff(events["t"]) >= 0).all()
    assert (counted(events, (3, 2, 5, 7), window) == frames.numpy()).all()
    of_pixel = events[(events["x"] == 6) & (events["y"] == 4) & (events["p"] == 1) & (events["t"] >= 2 * window)]
    assert len(of_pixel) == 255
    assert (np.diff(of_pixel["t"]) > 0).all()


def test_nothing_comes_of_empty_frames_and_wrong_ones_are_refused():
    assert len(frames_to_events(torch.zeros(2, 1, 3, 3, dtype=torch.uint8))) == 0
    for frames in (torch.zeros(2, 2, 3, 3), torch.zeros(2, 3, 3, 3, dtype=torch.uint8)):
        with pytest.raises(ArgumentError, match="frames must be"):
            frames_to_events(frames)
    for window in (254, 1000.0, True):
        with pytest.raises(ArgumentError, match="time_window"):
            frames_to_events(torch.zeros(2, 2, 3, 3, dtype=torch.uint8), window)


def test_a_data_set_in_tonics_manner(bars):
    data = DistilledEvents(bars, transform=lambda events: events["t"].max(), target_transform=lambda label: -label)
    assert len(data) == len(bars)
    assert data.sensor_size == (10, 10, 2)
    assert data.targets == bars.labels.tolist()
    latest, label = data[len(bars) - 1]
    assert 2000 <= latest < 3000
    assert label == -2
    events, label = DistilledEvents(bars)[0]
    assert (counted(events, (3, 2, 10, 10), 1000) == bars.frames[0].numpy()).all()
    assert label == 0
    with pytest.raises(ArgumentError, match="time_window"):
        DistilledEvents(bars, time_window=1)


def test_spikingjellys_folders_read_back(tmp_path):
    bars = make_bars(per_class=2, num_classes=11, size=40)
    folder = write_spikingjelly_frames(tmp_path, bars)
    assert folder.name == "frames_number_3_split_by_time"
    # SpikingJelly numbers the folders sorted as text
    assert sorted(path.name for path in (folder / "train").iterdir()) == [f"{k:02d}" for k in range(11)]
    loaded = load_spikingjelly_frames(folder, "train", quiet=True)
    assert torch.equal(loaded.frames, bars.frames)
    assert torch.equal(loaded.labels, bars.labels)
    with np.load(next((folder / "train" / "00").iterdir())) as file:
        assert file["frames"].dtype == np.float32
    assert (folder / "classes.txt").read_text().splitlines()[10] == "10 bar 10"
    with pytest.raises(ArgumentError, match="not empty"):
        write_spikingjelly_frames(tmp_path, bars)
