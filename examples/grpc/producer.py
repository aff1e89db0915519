"""A detector with a gRPC service that streams frames. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

messages, services = grpc.protos_and_services("detector.proto")


class Detector(services.DetectorServicer):
    """A service that sends a run of frames to each client that asks for one."""

    def Acquire(self, run: Any, _context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Stream the frames; print their digest."""
        digest = hashlib.sha256()
        for number in range(run.frames):
            frame = messages.Frame(number=number, pixels=os.urandom(run.size))
            digest.update(frame.pixels)
            yield frame
        print(f"sent {run.frames} frames, SHA-256 {digest.hexdigest()}", flush=True)


def main() -> None:
    """Serve until the process is ended."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=7000)
    given = options.parse_args()
    server = grpc.server(ThreadPoolExecutor(4))
    services.add_DetectorServicer_to_server(Detector(), server)
    server.add_insecure_port(f"0.0.0.0:{given.port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
