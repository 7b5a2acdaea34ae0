"""``snn show``: what is drawn of a distilled set, and its spectra by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from snn_core.cli.show import show
from snn_core.distillation import create_method, write_product
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.reports.product_plot import pictures, plot_grid, plot_spectra, signals, spectra
from tests.distillation.conftest import make_bars, make_config


def product(folder):
    path = folder / "p.h5"
    write_product(path, create_method("random")(make_bars(), make_config(ipc=2)))
    return path


def test_signals_are_sums_of_parts():
    frames = np.random.default_rng(0).integers(0, 9, (2, 3, 2, 6, 5)).astype(np.uint8)
    found = signals(frames, cells=2).reshape(2, 3, 2, 2, 2)
    assert (found[:, :, :, 0, 0] == frames[:, :, :, :3, :3].sum((-2, -1))).all()
    assert (found[:, :, :, 1, 1] == frames[:, :, :, 3:, 3:].sum((-2, -1))).all()
    assert (found.sum((-2, -1)) == frames.sum((-2, -1))).all()


def test_phases_of_shifted_waves():
    """One step of 8 later is 45 degrees at frequency 1, 90 at 2; the amplitude does not see it."""
    time = np.arange(8)
    wave = 3 + np.cos(2 * np.pi * time / 8) + np.cos(2 * np.pi * 2 * time / 8)
    real = np.stack([wave, wave, wave])[:, :, None]
    found = spectra(real, np.roll(real[:1], 1, axis=1))
    assert np.allclose(found["own"], found["real"])
    assert np.allclose(found["own"][:3], [24, 4, 4])
    assert np.allclose(np.angle(found["aligned"][1:3], deg=True), [-45, -90])
    assert np.allclose(np.abs(found["aligned"][:3]), 1)
    assert np.allclose(found["real_aligned"][:, :3], 1)
    # Two opposite waves have no common phase: their mean is still.
    opposite = spectra(np.stack([wave, np.roll(wave, 4)])[:, :, None], real[:1])
    assert opposite["real"][1] == pytest.approx(4)
    assert opposite["real_mean"][1] == pytest.approx(0, abs=1e-9)


def test_on_is_red_off_is_blue():
    frames = np.zeros((1, 2, 2, 3, 3), np.uint8)
    frames[0, 0, 1, 0, 0] = 7
    frames[0, 1, 0, 2, 1] = 7
    drawn = pictures(frames)
    assert drawn[0, 0, 0, 0].tolist() == [1, 0, 0]
    assert drawn[0, 1, 2, 1].tolist() == [0, 0, 1]
    assert drawn.sum() == 2
    assert not pictures(np.zeros_like(frames)).any()


def test_show_draws_what_the_file_holds(tmp_path, capsys, monkeypatch):
    path = product(tmp_path)
    show(path, output=None)
    assert Image.open(tmp_path / "p.png").size[0] > 300
    show(path, output=tmp_path / "a" / "moving.gif", per_class=2)
    with Image.open(tmp_path / "a" / "moving.gif") as moving:
        assert moving.n_frames == 3
    monkeypatch.setattr("snn_core.cli.show.load_frames", lambda *given, **options: make_bars(seed=5))
    show(path, output=tmp_path / "s.svg", spectra=True, data="bars")
    assert "<svg" in (tmp_path / "s.svg").read_text()
    assert capsys.readouterr().out.count("drawn to") == 3
    monkeypatch.setattr("snn_core.cli.show.load_frames", lambda *given, **options: make_bars(num_classes=2))
    with pytest.raises(ArgumentError, match="classes"):
        show(path, output=tmp_path / "t.svg", spectra=True, data="bars")


def test_show_refuses(tmp_path):
    path = product(tmp_path)
    for options, words in (
        ({"output": tmp_path / "p.txt"}, r"allowed are \.png"),
        ({"output": tmp_path / "p.gif", "spectra": True}, "no .gif of spectra"),
        ({"output": tmp_path / "p.png", "spectra": True, "data": None}, "needs --data"),
    ):
        with pytest.raises(ArgumentError, match=words):
            show(path, **options)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"p\.h5: not a readable product"):
        show(path, output=tmp_path / "p.png")
    assert [file.name for file in tmp_path.iterdir()] == ["p.h5"]


def test_figures_refuse():
    bars = make_bars()
    frames, labels = bars.frames.numpy(), bars.labels.numpy()
    with pytest.raises(ArgumentError, match="with 2 names"):
        plot_grid(frames, ["a", "b"])
    with pytest.raises(ArgumentError, match="too large"):
        plot_grid(np.repeat(frames, 3, 0), ["a"] * 54)
    with pytest.raises(ArgumentError, match="no sample of bar 2"):
        plot_spectra(frames, labels, frames[:12], labels[:12], bars.class_names)
    with pytest.raises(ArgumentError, match="must be equal"):
        plot_spectra(frames, labels, frames[:, :2], labels, bars.class_names)
    with pytest.raises(ArgumentError, match="2 time steps"):
        plot_spectra(frames[:, :1], labels, frames[:, :1], labels, bars.class_names)
