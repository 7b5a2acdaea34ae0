"""A process of its own for file formats that only a large C library reads: HDF5, and MATLAB's through scipy.

Run as a script; knows nothing of the package, so that it starts without torch. Measured (h5py 3.16, HDF5 2.0): a file
with a few changed bytes can make the library loop for ever, crash or ask for any amount of memory, and nothing in the
same process can stop that. Here memory is limited by the operating system, and the parent ends what takes too long.

Protocol: the kind of file is the script's argument. A line of JSON in (path, memory in bytes, and for
spike trains the indices of samples); out, for each part of
the recording, a line of JSON ``{"columns": {name: [dtype, count]}, "about": ...}`` and the bytes of its columns in that
order; at the end ``{}``, or ``{"error": ...}``. Then the next file.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from typing import Any

PIECE = 1 << 17
NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps"),
    "x": ("x", "xs", "x_pos"),
    "y": ("y", "ys", "y_pos"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
#: Where recordings lie in HDF5 files: at the top, DSEC's and ours "events", Prophesee's "CD/events".
PLACES = ("", "events", "CD", "CD/events")


class Refused(Exception):
    """What the file holds is not read; the message says why."""


def find_columns(names: Iterable[str]) -> dict[str, str] | None:
    there = {name.lower(): name for name in names}
    found = {field: [there[name] for name in known if name in there] for field, known in NAMES.items()}
    return {field: hits[0] for field, hits in found.items()} if all(len(hits) == 1 for hits in found.values()) else None


def send(columns: dict[str, Any], **about: Any) -> None:
    import numpy as np

    columns = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    for name, column in columns.items():
        if column.dtype.kind not in "iubf" or column.ndim != 1:
            raise Refused(f"{name} must be one-dimensional and hold numbers, got {column.dtype} {column.shape}"[:300])
    header = {name: [column.dtype.str, len(column)] for name, column in columns.items()}
    sys.stdout.buffer.write(json.dumps({"columns": header, "about": about}).encode() + b"\n")
    for column in columns.values():
        sys.stdout.buffer.write(column.tobytes())
    sys.stdout.buffer.flush()


def own(group: Any, name: str) -> Any:
    """A member of an HDF5 group that lies in this file: a hostile file may name any other file of this user."""
    import h5py

    if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        raise Refused(f"{name} is a link to another file")
    item = group[name]
    if isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
        raise Refused(f"the data of {name} lie in another file")
    return item


def locate(file: Any, place: str) -> Any:
    """The group or data set at ``place``, None where there is none."""
    import h5py

    item = file
    for part in filter(None, place.split("/")):
        if not isinstance(item, h5py.Group) or part not in item:
            return None
        item = own(item, part)
    return item


def read_hdf5(request: dict[str, Any]) -> None:
    import h5py

    with h5py.File(request["path"], "r", locking=False) as file:
        for place in PLACES:
            item = locate(file, place)
            if isinstance(item, h5py.Dataset) and item.dtype.names and (names := find_columns(item.dtype.names)):
                return stream({field: FieldOf(item, name) for field, name in names.items()}, item.shape, place)
            if isinstance(item, h5py.Group) and (names := find_columns(item)):
                sets = {field: own(item, name) for field, name in names.items()}
                if not all(isinstance(data, h5py.Dataset) for data in sets.values()):
                    continue
                shapes = {field: data.shape for field, data in sets.items()}
                if len(set(shapes.values())) != 1:
                    raise Refused(f"t, x, y and p must be of equal length, got {shapes}")
                return stream(sets, shapes["t"], place)
    raise Refused(f"no data sets t, x, y and p, nor a table of them, at the top or in {', '.join(PLACES[1:])}")


class FieldOf:
    """A field of a table, sliced like a data set of its own."""

    def __init__(self, table: Any, name: str) -> None:
        self.table, self.name = table, name

    def __getitem__(self, part: slice) -> Any:
        return self.table[part][self.name]


def stream(sets: dict[str, Any], shape: tuple[int, ...], place: str) -> None:
    """Send the columns in pieces; at least one, so that an empty recording says what it is."""
    if len(shape) != 1:
        raise Refused(f"t, x, y and p must be one-dimensional, got {shape}")
    for first in range(0, max(shape[0], 1), PIECE):
        part = slice(first, min(first + PIECE, shape[0]))
        send({field: data[part] for field, data in sets.items()}, layout=f"in /{place}", origin=0)


def read_mat(request: dict[str, Any]) -> None:
    import numpy as np
    import scipy.io

    content = {name: value for name, value in scipy.io.loadmat(request["path"]).items() if not name.startswith("__")}
    # Orchard's functions for the ATIS: TD are changes of brightness; EM beside it are measurements of brightness.
    structures = ["TD"] if "TD" in content else [name for name, value in content.items() if value.dtype.names]
    value = content.get(structures[0]) if len(structures) == 1 else None
    if value is not None and value.size == 1 and {"x", "y", "p", "ts"} <= set(value.dtype.names or ()):
        columns = {
            field: value.ravel()[0][there].ravel() for field, there in zip("txyp", ("ts", "x", "y", "p"), strict=True)
        }
        p = columns["p"]
        if p.dtype.kind in "iuf" and p.size and p.min() >= 1 and p.max() == 2:  # of N-MNIST: 1 OFF, 2 ON
            columns["p"] = p.astype(np.int64) - 1
        return send(columns, layout=f"ATIS structure {structures[0]}, coordinates from 1", origin=1)
    if "spiketrain" in content:
        return send(tactile(content["spiketrain"], np), layout="ST-MNIST spiketrain, 10 x 10 taxels", origin=0)
    raise Refused(f"neither an ATIS structure of x y p ts nor ST-MNIST's spiketrain, but {', '.join(content)[:200]}")


def tactile(table: Any, np: Any) -> dict[str, Any]:
    """ST-MNIST (See et al. 2020): rows 0..99 a taxel each, 10 y + x, -1, 0 or 1 at every time; last row seconds."""
    if table.ndim != 2 or table.shape[0] != 101 or table.dtype.kind != "f":
        raise Refused(f"spiketrain must be 101 rows of numbers, got {table.dtype} {table.shape}")
    which, taxel = np.nonzero(table[:-1].T)
    seconds = table[-1][which]
    if not (np.abs(seconds) < 1e12).all():
        raise Refused("spiketrain's times are no seconds")
    return {"t": np.rint(seconds * 1e6).astype(np.int64), "x": taxel % 10, "y": taxel // 10, "p": table[taxel, which]}


def read_spike_trains(request: dict[str, Any]) -> None:
    """Heidelberg's spiking data sets (Cramer et al. 2020): the labels, or the spikes of the samples in ``indices``."""
    import h5py

    with h5py.File(request["path"], "r", locking=False) as file:
        labels = locate(file, "labels")
        times, units = locate(file, "spikes/times"), locate(file, "spikes/units")
        for name, item in (("labels", labels), ("spikes/times", times), ("spikes/units", units)):
            if not isinstance(item, h5py.Dataset) or item.ndim != 1:
                raise Refused(f"no one-dimensional data set {name}")
        if not len(labels) == len(times) == len(units):
            raise Refused(f"{len(labels)} labels, {len(times)} times and {len(units)} units of spikes")
        if request["indices"] is None:
            return send({"labels": labels[...]})
        for index in request["indices"]:
            send({"times": times[index], "units": units[index]})
    return None


def answer(request: dict[str, Any], reader: Callable[[dict[str, Any]], None]) -> None:
    """Read one file and send it, or why not."""
    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()  # by the libraries: no matter of the file's
    resource.setrlimit(resource.RLIMIT_AS, (taken + request["memory"],) * 2)
    last = {}
    try:
        reader(request)
    except MemoryError:
        last = {"error": f"reading it takes more than {request['memory']} bytes of memory"}
    except Exception as error:  # whatever a library raises on a damaged file
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        last = {"error": text[:500]}
    sys.stdout.buffer.write(json.dumps(last).encode() + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    reader, library = {
        "hdf5": (read_hdf5, "h5py"),
        "mat": (read_mat, "scipy.io"),
        "spike trains": (read_spike_trains, "h5py"),
    }[sys.argv[1]]
    importlib.import_module(library)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # A process for each file, so that one file cannot leave anything behind for the next. Importing takes most of
        # the time, forking little.
        child = os.fork()
        if child == 0:
            answer(json.loads(line), reader)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            return  # it crashed, perhaps in the middle of an answer: the other side sees the end of the stream


if __name__ == "__main__":
    main()
