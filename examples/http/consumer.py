"""Fetch all frames of a web server over one connection, and check their digests. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import base64
import hashlib
from http.client import HTTPConnection


def main() -> None:
    """Fetch the frames; print the digest of all of them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    given = options.parse_args()
    server = HTTPConnection(given.host, given.port, timeout=60)
    count = int(fetch(server, "/frames"))
    digest = hashlib.sha256()
    for number in range(count):
        digest.update(fetch(server, f"/frames/{number}"))
    print(f"received {count} frames, SHA-256 {digest.hexdigest()}", flush=True)


def fetch(server: HTTPConnection, path: str) -> bytes:
    """Return what is at a path."""
    server.request("GET", path)
    answer = server.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {answer.reason}")
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if answer.headers["Repr-Digest"] != f"sha-256=:{digest}:":
        raise SystemExit(f"{path} has been damaged")
    return body


if __name__ == "__main__":
    main()
