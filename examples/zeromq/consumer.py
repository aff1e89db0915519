"""Pull numbered frames with ZeroMQ, and check that none is missing. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import hashlib

import zmq


def main() -> None:
    """Pull until the empty message; print the digest of all frames."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    given = options.parse_args()
    digest, expected = hashlib.sha256(), 0
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.IPV6, 1)
        socket.connect(
            f"tcp://[{given.host}]:{given.port}" if ":" in given.host else f"tcp://{given.host}:{given.port}"
        )
        while len(parts := socket.recv_multipart()) == 2:
            number = int.from_bytes(parts[0], "big")
            if number != expected:
                raise SystemExit(f"frame {expected} is missing: {number} came instead")
            expected += 1
            digest.update(parts[1])
    print(f"received {expected} frames, SHA-256 {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
