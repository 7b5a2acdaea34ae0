"""Pictures and videos in front of a simulated event sensor. What comes out is *simulated*, whatever went in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snn_core.datasets.event_sensor import EventSensor, FloatArray, batches
from snn_core.errors import ArgumentError
from snn_core.kernels.event_sensor import MAX_TIME_US, PictureOptics, sensor_pictures, to_fixed

PHASES, LEVELS = 256, 4096
#: Pictures that are simulated in one call: enough for all threads, few enough for the events to stay in the cache.
BATCH = 256


@dataclass(frozen=True)
class Scene:
    """How bright pictures are and how sharply the sensor sees them.

    Args:
        background: brightness of black beside that of white, 1: log brightness is ``log(background + value)``.
        pixels_a_cell: sensor pixels that a picture pixel covers.
        blur: standard deviation of a Gaussian blur in sensor pixels, on top of cubic interpolation (Keys, a = -1/2).
        gamma: brightness of a value v of 0 .. 255 is ``(v / white) ** gamma``.
        white: the value of full brightness.

    Raises:
        ArgumentError: one that is not positive (blur may be 0), or outside what can be simulated.
    """

    background: float = 0.13
    pixels_a_cell: float = 1.0
    blur: float = 0.0
    gamma: float = 1.0
    white: float = 255.0

    def __post_init__(self) -> None:
        for name in ("background", "pixels_a_cell", "gamma", "white"):
            if not 0 < getattr(self, name) < np.inf:
                raise ArgumentError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.blur <= 16:
            raise ArgumentError(f"blur must lie in 0..16 pixels, got {self.blur}")
        if not 1 / 16 <= self.pixels_a_cell <= 256:
            raise ArgumentError(f"pixels_a_cell must lie in 1/16..256, got {self.pixels_a_cell}")

    def optics(self) -> PictureOptics:
        """As :func:`snn_core.kernels.event_sensor.sensor_pictures` takes it."""
        stride = int(to_fixed(np.array(1 / self.pixels_a_cell)))
        brightness = np.minimum(np.arange(256) / self.white, 1) ** self.gamma
        response = self.log_brightness(np.arange(LEVELS + 1) / LEVELS)
        return PictureOptics((stride, stride), self._taps(), brightness.astype(np.float32), response)

    def log_brightness(self, brightness: NDArray[Any]) -> FloatArray:
        """Natural logarithm, float32, of brightness 0 .. 1 over the background."""
        return np.log(self.background + brightness.astype(np.float64)).astype(np.float32)

    def _taps(self) -> FloatArray:
        # Where the picture is made smaller, the kernel is as wide as a sensor pixel, not as one of the picture's.
        width = max(1.0, 1 / self.pixels_a_cell)
        sigma = self.blur / self.pixels_a_cell
        reach = int(np.ceil(2 * width + 3 * sigma))
        offsets = np.arange(1 - reach, reach + 1)[None, :] - np.arange(PHASES)[:, None] / PHASES
        nodes, weights = (np.zeros(1), np.ones(1))
        if sigma:
            nodes = np.linspace(-3, 3, 61) * sigma
            weights = np.exp(-0.5 * (nodes / sigma) ** 2)
        taps = (_cubic((offsets[..., None] - nodes) / width) * weights).sum(-1)
        return np.ascontiguousarray(taps / taps.sum(1, keepdims=True), np.float32)


def simulate_images(
    images: NDArray[np.uint8],
    path: ArrayLike,
    timestamps: ArrayLike,
    sensor: EventSensor,
    *,
    scene: Scene | None = None,
    names: Sequence[str | int] | None = None,
) -> Iterator[NDArray[np.void]]:
    """Events of pictures that move in front of a sensor, one recording a picture, lazily.

    Args:
        images: uint8 [num, h, w].
        path: float [S, 2] for all or [num, S, 2], displacement (x, y) in sensor pixels of the picture's centre from
            the sensor's, at each of ``timestamps``; between them log brightness is linear in time.
        timestamps: int [S], microseconds, ascending, 0 to 2**30 - 1.
        sensor: what sees them.
        scene: brightness, size and blur; by default as :class:`Scene` has them.
        names: one a picture, of its noise: the same name and seed give the same events whatever else is simulated.
            By default the numbers 0 .. num - 1.

    Returns:
        An iterator over events (EVENT_DTYPE), in order of time, then pixel.

    Raises:
        ArgumentError: shapes, types or times that do not fit; raised at the call.
    """
    scene = scene or Scene()
    times = np.asarray(timestamps)
    if times.ndim != 1 or not len(times) or times.dtype.kind not in "iu":
        raise ArgumentError(f"timestamps must be integers [steps], got {times.dtype} {list(times.shape)}")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 3 or 0 in images.shape[1:]:
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ArgumentError(f"images must be uint8 [num, h, w], got {found}")
    before = -1
    for time in times.tolist():
        if not before < time <= MAX_TIME_US:
            raise ArgumentError(f"times must ascend from 0 to {MAX_TIME_US} microseconds, got {time} after {before}")
        before = time
    try:
        places = np.asarray(path, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"path must hold numbers: {error}") from error
    if places.shape not in ((len(times), 2), (len(images), len(times), 2)) or not (abs(places) < 2**14).all():
        raise ArgumentError(
            f"path must be [{len(times)}, 2] or [{len(images)}, {len(times)}, 2], within 2**14 pixels, "
            f"got {list(places.shape)}"
        )
    names = range(len(images)) if names is None else names
    if len(names) != len(images):
        raise ArgumentError(f"names holds {len(names)} names for {len(images)} images")
    reach = float(abs(places).max(initial=0)) + max(sensor.width, sensor.height)
    if reach / scene.pixels_a_cell + max(images.shape[1:]) > 2**15 - 1:
        raise ArgumentError(f"path goes {reach:g} sensor pixels far, at {scene.pixels_a_cell} a picture pixel too far")
    return _simulate(images, places, times.astype(np.int64), sensor, scene, names)


def _simulate(
    images: NDArray[np.uint8],
    path: NDArray[np.float64],
    times: NDArray[np.int64],
    sensor: EventSensor,
    scene: Scene,
    names: Sequence[str | int],
) -> Iterator[NDArray[np.void]]:
    optics = scene.optics()
    middle = (np.array(images.shape[:0:-1]) - 1) / 2
    corner = (np.array([sensor.width, sensor.height]) - 1) / 2
    for chosen in batches(len(images), BATCH):
        here = np.broadcast_to(path, (len(images), *path.shape[-2:]))[chosen]
        looked_at = to_fixed(middle - (corner + here) / scene.pixels_a_cell)
        noise = sensor.noise(names[chosen], int(times[-1]))
        yield from sensor_pictures(images[chosen], looked_at, times, sensor.pixels, optics, noise, sensor.backend)


def simulate_video(
    frames: Iterable[NDArray[Any]],
    timestamps: Iterable[int],
    sensor: EventSensor,
    *,
    background: float = 0.02,
    name: str | int = 0,
) -> NDArray[np.void]:
    """Events of a video, as a simulated sensor of its resolution sees it.

    Args:
        frames: [S, height, width] or an iterator over [height, width]: uint8, or float from 0 (black) to 1 (white),
            linear in brightness. Each is only read until the next comes, so that a video may be longer than memory.
        timestamps: microseconds of the frames, ascending, 0 to 2**30 - 1. Between frames log brightness is linear in
            time: at 30 frames a second fast motion needs frames interpolated by other means first.
        sensor: of the size of the frames.
        background: brightness added to all, which limits the contrast of the darkest parts.
        name: of the noise: the same name and seed give the same.

    Returns:
        Events (EVENT_DTYPE), in order of time, then pixel.

    Raises:
        ArgumentError: frames of another size or type, or values outside 0 .. 1; times that do not ascend.
    """
    scene = Scene(background=background)
    if isinstance(frames, Sized) and isinstance(timestamps, Sized) and len(frames) != len(timestamps):
        more, fewer = ("frames", "timestamps") if len(frames) > len(timestamps) else ("timestamps", "frames")
        raise ArgumentError(f"there are more {more} than {fewer}: {len(frames)} frames, {len(timestamps)} timestamps")
    return sensor.record_at(
        (_video_frame(frame, index, sensor, scene) for index, frame in enumerate(frames)), timestamps, [name]
    )[0]


def _video_frame(frame: NDArray[Any], index: int, sensor: EventSensor, scene: Scene) -> FloatArray:
    frame = np.asarray(frame)
    if frame.shape != (sensor.height, sensor.width):
        raise ArgumentError(
            f"frame {index} must be [{sensor.height}, {sensor.width}] as the sensor, got {list(frame.shape)}"
        )
    if frame.dtype == np.uint8:
        frame = frame / 255
    elif frame.dtype.kind != "f" or not ((frame >= 0) & (frame <= 1)).all():
        raise ArgumentError(f"frame {index} must be uint8 or float within 0 .. 1, got {frame.dtype}")
    return scene.log_brightness(frame).reshape(1, -1)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic interpolation kernel, a = -1/2."""
    d = np.abs(distance)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))
