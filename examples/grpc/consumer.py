"""Ask a detector for a run by gRPC, and check that no frame is missing. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import hashlib

import grpc

messages, services = grpc.protos_and_services("detector.proto")


def main() -> None:
    """Receive a run; print the digest of all frames."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("--frames", type=int, default=200)
    options.add_argument("--size", type=int, default=256 * 1024, help="bytes of a frame")
    given = options.parse_args()
    digest, expected = hashlib.sha256(), 0
    host = f"[{given.host}]" if ":" in given.host else given.host
    with grpc.insecure_channel(f"{host}:{given.port}") as channel:
        detector = services.DetectorStub(channel)
        for frame in detector.Acquire(messages.Run(frames=given.frames, size=given.size), wait_for_ready=True):
            if frame.number != expected:
                raise SystemExit(f"frame {expected} is missing: {frame.number} came instead")
            expected += 1
            digest.update(frame.pixels)
    print(f"received {expected} frames, SHA-256 {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
