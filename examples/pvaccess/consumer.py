"""Monitor an image of an EPICS PVAccess server over TCP, and check its pixels. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import queue

import numpy as np
from p4p.client.thread import Context


def main() -> None:
    """Receive some images; print the size of one, and how many were right."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("--images", type=int, default=20)
    given = options.parse_args()
    search = {"EPICS_PVA_NAME_SERVERS": f"{given.host}:{given.port}", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    images: queue.Queue[np.ndarray] = queue.Queue()
    with Context("pva", conf=search, useenv=False) as context, context.monitor("detector:image", images.put):
        for _ in range(given.images):
            pixels = np.asarray(images.get(timeout=60))
            if not np.array_equal(pixels, np.arange(pixels.size, dtype=np.uint16) + pixels[0]):
                raise SystemExit("an image has been damaged")
    print(f"received {given.images} images of {pixels.size} pixels, all right", flush=True)


if __name__ == "__main__":
    main()
