"""A simulated area detector: a spot moves over a noisy background. It knows nothing of SciStream.

Each frame goes over TCP as a header of 16 bytes, which are the number, the height and the width, followed by the pixels
as unsigned 16-bit numbers in network byte order.
"""

from __future__ import annotations

import argparse
import socket
import struct
import time

import numpy as np

HEADER = struct.Struct("!QII")


def main() -> None:
    """Send the frames to the first who connects; print what the pixels add up to."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=7000)
    options.add_argument("--frames", type=int, default=100)
    options.add_argument("--rate", type=float, default=100.0, help="frames per second")
    options.add_argument("--size", type=int, default=256, help="pixels in each direction")
    given = options.parse_args()
    rows, columns = np.mgrid[: given.size, : given.size]
    noise = np.random.default_rng(0)
    total = 0
    with socket.create_server(("", given.port)) as server:
        connection, _ = server.accept()
        with connection:
            for number in range(given.frames):
                angle = 2 * np.pi * number / given.frames
                row, column = given.size / 2 + given.size / 4 * np.array([np.sin(angle), np.cos(angle)])
                spot = 4000 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 50)
                frame = (spot + noise.poisson(20, spot.shape)).astype(">u2")
                total += int(frame.sum(dtype=np.uint64))
                connection.sendall(HEADER.pack(number, *frame.shape) + frame.tobytes())
                time.sleep(1 / given.rate)
    print(f"sent {given.frames} frames, {total} counts", flush=True)


if __name__ == "__main__":
    main()
