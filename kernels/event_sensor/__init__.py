"""Log brightness over time -> the events of a simulated sensor: see ops.py."""

from snn_core.kernels.event_sensor.ops import (
    MAX_TIME_US,
    PictureOptics,
    SensorExposure,
    SensorNoise,
    SensorPixels,
    event_keys,
    sensor_pictures,
    to_fixed,
)

__all__ = [
    "MAX_TIME_US",
    "PictureOptics",
    "SensorExposure",
    "SensorNoise",
    "SensorPixels",
    "event_keys",
    "sensor_pictures",
    "to_fixed",
]
