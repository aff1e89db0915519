"""A web server of the standard library that serves frames. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FRAMES: list[bytes] = []


class Frames(BaseHTTPRequestHandler):
    """Serves ``/frames``, their number, and ``/frames/0`` and so on, each with its digest (RFC 9530)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request."""
        _, _, number = self.path.partition("/frames/")
        if self.path == "/frames":
            body = str(len(FRAMES)).encode()
        elif number.isdecimal() and int(number) < len(FRAMES):
            body = FRAMES[int(number)]
        else:
            self.send_error(404)
            return
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Repr-Digest", f"sha-256=:{digest}:")
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until the process is ended."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=7000)
    options.add_argument("--frames", type=int, default=50)
    options.add_argument("--size", type=int, default=1024 * 1024, help="bytes of a frame")
    given = options.parse_args()
    FRAMES.extend(os.urandom(given.size) for _ in range(given.frames))
    digest = hashlib.sha256(b"".join(FRAMES)).hexdigest()
    server = ThreadingHTTPServer(("", given.port), Frames)
    print(f"serves {given.frames} frames, SHA-256 {digest}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
