"""A detector that pushes numbered frames with ZeroMQ. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import hashlib
import os

import zmq


def main() -> None:
    """Push the frames to the consumer that connects, then an empty message; print the digest of all frames."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=7000)
    options.add_argument("--frames", type=int, default=200)
    options.add_argument("--size", type=int, default=256 * 1024, help="bytes of a frame")
    given = options.parse_args()
    digest = hashlib.sha256()
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.bind(f"tcp://*:{given.port}")
        for number in range(given.frames):
            frame = os.urandom(given.size)
            digest.update(frame)
            socket.send_multipart([number.to_bytes(8, "big"), frame])  # waits while nobody is connected
        socket.send(b"")
    # Leaving the context has waited until ZeroMQ has sent everything.
    print(f"sent {given.frames} frames, SHA-256 {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
