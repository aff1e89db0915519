"""An EPICS PVAccess server with an image that changes. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import time

import numpy as np
from p4p.nt import NTScalar
from p4p.server import Server
from p4p.server.thread import SharedPV


def main() -> None:
    """Change the image until the process is ended."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=5075)
    options.add_argument("--address", default="0.0.0.0", help="where the server listens")
    options.add_argument("--size", type=int, default=512 * 512, help="pixels of the image")
    options.add_argument("--rate", type=float, default=20.0, help="images per second")
    given = options.parse_args()
    pixels = np.arange(given.size, dtype=np.uint16)
    image = SharedPV(nt=NTScalar("aH"), initial=pixels)
    listen = {"EPICS_PVAS_INTF_ADDR_LIST": given.address, "EPICS_PVAS_SERVER_PORT": str(given.port)}
    with Server(providers=[{"detector:image": image}], conf=listen, useenv=False):
        number = 0
        while True:
            time.sleep(1 / given.rate)
            number += 1
            image.post(pixels + np.uint16(number))


if __name__ == "__main__":
    main()
