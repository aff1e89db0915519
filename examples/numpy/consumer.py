"""Receive frames, find the spot in each, and plot it while it moves. It knows nothing of SciStream.

With a display the plot is a window. Without one, as in a batch job, it is a picture that is written again and again.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
from pathlib import Path

import matplotlib
import numpy as np

HEADER = struct.Struct("!QII")


def main() -> None:
    """Receive until the detector closes the connection; print what the pixels add up to, and where the spot was."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("--picture", type=Path, default=Path("spot.png"), help="where the plot goes without a display")
    options.add_argument("--every", type=int, default=25, help="frames between two plots")
    given = options.parse_args()
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        matplotlib.use("Agg")
    plot = Plot(given.picture)
    count = total = 0
    with socket.create_connection((given.host, given.port)) as connection, connection.makefile("rb") as stream:
        while header := stream.read(HEADER.size):
            number, height, width = HEADER.unpack(header)
            if number != count:
                raise SystemExit(f"frame {count} is missing: {number} came instead")
            frame = np.frombuffer(stream.read(2 * height * width), ">u2").reshape(height, width)
            count += 1
            total += int(frame.sum(dtype=np.uint64))
            plot.spots.append(centre_of(frame))
            if number % given.every == 0:
                plot.show(frame)
    plot.show(frame)
    row, column = plot.spots[-1]
    print(f"received {count} frames, {total} counts, the last spot at {row:.0f}, {column:.0f}", flush=True)


def centre_of(frame: np.ndarray) -> tuple[float, float]:
    """Return row and column of the centre of what is brighter than the background."""
    bright = np.where(frame > 200, frame, 0).astype(float)
    weight = bright.sum() or 1.0
    rows, columns = np.indices(frame.shape)
    return float((rows * bright).sum() / weight), float((columns * bright).sum() / weight)


class Plot:
    """The newest frame, and the way of the spot.

    :param picture: the file for the plot, if there is no display.
    """

    def __init__(self, picture: Path) -> None:
        from matplotlib import pyplot

        self.spots: list[tuple[float, float]] = []
        self._pyplot = pyplot
        self._picture = picture
        self._figure, self._axes = pyplot.subplots(figsize=(5, 5))

    def show(self, frame: np.ndarray) -> None:
        """Draw a frame."""
        self._axes.clear()
        self._axes.imshow(frame, origin="lower", cmap="viridis")
        self._axes.plot([column for _, column in self.spots], [row for row, _ in self.spots], "r-", linewidth=1)
        self._axes.set(xlabel="column (pixels)", ylabel="row (pixels)", title=f"frame {len(self.spots) - 1}")
        if matplotlib.get_backend().lower() == "agg":
            self._figure.savefig(self._picture)
        else:
            self._pyplot.pause(0.001)


if __name__ == "__main__":
    main()
