"""Publish numbered frames to a RabbitMQ broker of this facility. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import hashlib
import os

import pika


def main() -> None:
    """Publish the frames, then an empty message; print the digest of all frames."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--broker", default="127.0.0.1")
    options.add_argument("--port", type=int, default=5672)
    options.add_argument("--frames", type=int, default=200)
    options.add_argument("--size", type=int, default=256 * 1024, help="bytes of a frame")
    given = options.parse_args()
    digest = hashlib.sha256()
    with pika.BlockingConnection(pika.ConnectionParameters(given.broker, given.port)) as connection:
        channel = connection.channel()
        channel.queue_declare("frames", durable=True)
        channel.confirm_delivery()
        for number in range(given.frames):
            frame = os.urandom(given.size)
            digest.update(frame)
            properties = pika.BasicProperties(message_id=str(number))
            channel.basic_publish("", "frames", frame, properties)
        channel.basic_publish("", "frames", b"")
    print(f"sent {given.frames} frames, SHA-256 {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
