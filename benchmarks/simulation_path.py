"""How N-MNIST's sensor moved, from its events and the pictures it saw; the part "path" of simulation.py.

Events between t and t + 5 ms, ON less OFF, go with the change of brightness: with the picture's gradient, displaced to
where the picture is. The displacement is where they correlate best, by Fourier transforms, summed over all recordings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from snn_core.datasets import data_root, open_source
from snn_core.datasets.nmnist_sim import PATH
from snn_core.datasets.pictures import load_mnist

SIZE, FINE, WINDOW_US, WINDOWS, BLUR = 64, 8, 5000, 61, 0.8
FREQUENCY = np.fft.fftfreq(SIZE) * 2 * np.pi
SCALES = (0.96, 1.0, 1.04)


def spectra(pictures: NDArray[np.uint8], scale: float) -> NDArray[np.complex128]:
    """Fourier transforms [num, 64, 64] of blurred pictures, enlarged about their centre, centre at (16.5, 16.5)."""
    placed = np.zeros((len(pictures), SIZE, SIZE))
    for index, picture in enumerate(pictures):
        offset = 13.5 - 16.5 / scale
        placed[index, :34, :34] = affine_transform(
            picture / 255.0, [1 / scale] * 2, offset=[offset] * 2, output_shape=(34, 34), order=1
        )
    blur = np.exp(-0.5 * BLUR**2 * (FREQUENCY[:, None] ** 2 + FREQUENCY[None] ** 2))
    return np.fft.fft2(placed) * blur


def fine(spectrum: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Correlation at steps of an eighth of a pixel."""
    half, wide = SIZE // 2, np.zeros((SIZE * FINE, SIZE * FINE), complex)
    for rows in (slice(0, half), slice(-half, None)):
        for columns in (slice(0, half), slice(-half, None)):
            wide[rows, columns] = spectrum[rows, columns]
    return np.fft.ifft2(wide).real


def displacement(correlation: NDArray[np.float64], step: int) -> list[float]:
    """(x, y) in pixels of the largest entry."""
    row, column = np.unravel_index(correlation.argmax(), correlation.shape)
    size = len(correlation)
    return [float(index if index < size // 2 else index - size) / step for index in (column, row)]


def measure() -> dict[str, Any]:
    """Position of the picture's centre every 5 ms, how well it explains the events, scale and framing."""
    real = open_source("nmnist")
    recordings = real.recordings("all")
    images = load_mnist(data_root()).pictures
    keys = [(item.id.split("/")[0].lower(), int(item.id.split("/")[-1]) - 1) for item in recordings]
    pictures = np.stack([images[part][index] for part, index in keys])
    signed = np.zeros((WINDOWS, len(recordings), SIZE, SIZE), np.float32)
    for index, events in enumerate(real.read(recordings)):
        window = np.minimum(events["t"] // WINDOW_US, WINDOWS - 1)
        np.add.at(signed[:, index], (window, events["y"], events["x"]), 2.0 * events["p"] - 1)
    signed[:, :, 30, 18] = 0  # a hot pixel
    seen = np.fft.fft2(signed).astype(np.complex64)
    plain = spectra(pictures, 1.0)
    slopes = [plain * 1j * FREQUENCY[None, None, :], plain * 1j * FREQUENCY[None, :, None]]
    inverse = np.linalg.inv([[(a * b.conj()).sum().real / SIZE**2 for a in slopes] for b in slopes])
    path, velocity, explained = [], [], []
    for window in range(WINDOWS):
        along = np.stack([fine((seen[window] * slope.conj()).sum(0)) for slope in slopes])
        score = np.einsum("iyx,ij,jyx->yx", along, inverse, along)
        path.append(displacement(score, FINE))
        velocity.append(inverse @ along[:, *np.unravel_index(score.argmax(), score.shape)])
        explained.append(float(score.max() * FINE**4 / (signed[window] ** 2).sum()))
    return {
        "picture_centre_from_sensor_centre_px_every_5_ms": path,
        "explained": [round(value, 3) for value in explained],
        "largest_distance_to_the_path_of_nmnist_sim_px": _distance(path, explained),
        "explained_by_scale": _by_scale(pictures, seen, signed, path, velocity),
        "framing": _framing(plain, seen, path, velocity, [part for part, _ in keys]),
    }


def _distance(path: list[list[float]], explained: list[float]) -> float:
    """From the smoothed path that nmnist-sim uses, where the picture moves and the measurement is sharp."""
    knots = (np.arange(WINDOWS) + 0.5)[:, None]
    used = np.stack([np.interp(knots[:, 0], np.arange(len(PATH)), np.array(PATH)[:, axis]) for axis in (0, 1)], 1)
    sharp = np.array(explained) > 0.2
    return round(float(np.abs(np.array(path) - used)[sharp].max()), 2)


def _predicted(plain: Any, position: Any, velocity: Any) -> Any:
    shift = np.exp(-1j * (FREQUENCY[None, :] * position[0] + FREQUENCY[:, None] * position[1]))
    return plain * 1j * (FREQUENCY[None, :] * velocity[0] + FREQUENCY[:, None] * velocity[1]) * shift


def _by_scale(pictures: Any, seen: Any, signed: Any, path: Any, velocity: Any) -> dict[str, float]:
    """Fraction of the signed events' variance that pictures enlarged by each scale explain."""
    result = {}
    for scale in SCALES:
        plain, common, power = spectra(pictures, scale), 0.0, 0.0
        for window in range(WINDOWS):
            expected = _predicted(plain, path[window], velocity[window])
            common += (seen[window] * expected.conj()).sum().real / SIZE**2
            power += (np.abs(expected) ** 2).sum() / SIZE**2
        result[str(scale)] = round(float(common**2 / power / (signed**2).sum()), 4)
    return result


def _framing(plain: Any, seen: Any, path: Any, velocity: Any, parts: list[str]) -> dict[str, Any]:
    """Mean and deviation of the offset (x, y) of single recordings from the path, in pixels."""
    common = sum(seen[k] * _predicted(plain, path[k], velocity[k]).conj() for k in range(WINDOWS))
    offsets = np.array([displacement(fine(spectrum), FINE) for spectrum in common])
    groups = {part: offsets[np.array(parts) == part] for part in ("train", "test")}
    return {
        part: {"mean": group.mean(0).round(3).tolist(), "deviation": group.std(0).round(3).tolist()}
        for part, group in groups.items()
    }
