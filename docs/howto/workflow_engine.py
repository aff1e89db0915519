"""Two tasks of a workflow: one reserves a stream, the other watches it and releases it, maybe on another machine."""

import pickle
import sys
import threading
from pathlib import Path

from scistream.s2uc.blocking import Client, StateChange, StreamFigures, StreamHandle


def reserve(prod: str, cons: str) -> StreamHandle:
    """Reserve a stream for an hour. The handle has the join strings, so keep it as secret as a password."""
    with Client.from_config() as client:
        stream = client.request(prod=prod, cons=cons, rate="100Mbit", expires=3600, label="run 17", timeout=60)
        return stream.handle(secrets=True)


def supervise(handle: StreamHandle, expected_bytes: int) -> int:
    """Wait until the consumer has this many bytes, then release the stream. Return how many it has."""
    arrived = threading.Event()
    latest: list[StreamFigures] = []

    def tell(change: StateChange) -> None:
        print(f"{change.before} -> {change.state}", change.error or "", file=sys.stderr)
        if change.error is not None:
            arrived.set()

    def look(figures: StreamFigures) -> None:
        latest.append(figures)
        if figures.bytes_to_consumer >= expected_bytes:
            arrived.set()

    with Client.from_config() as client, client.attach(handle, timeout=60) as stream:
        stream.on_state(tell)
        stream.provisioned(timeout=600)
        stream.on_figures(look, interval=0.5)
        if not arrived.wait(timeout=3600):
            print(f"still waiting for {expected_bytes} bytes: released", file=sys.stderr)
    return latest[-1].bytes_to_consumer


if __name__ == "__main__":
    task, file, *arguments = sys.argv[1:]
    if task == "reserve":
        reserved = reserve(*arguments)
        Path(file).touch(mode=0o600)
        Path(file).write_bytes(pickle.dumps(reserved))
        print(reserved.join["PROD"], reserved.join["CONS"], sep="\n", flush=True)
    else:
        print(supervise(pickle.loads(Path(file).read_bytes()), int(arguments[0])), flush=True)
