"""Take numbered frames from a RabbitMQ broker, and check that none is missing. It knows nothing of SciStream."""

from __future__ import annotations

import argparse
import hashlib

import pika


def main() -> None:
    """Take frames until the empty message; print the digest of all of them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("--user", default="guest")
    options.add_argument("--password", default="guest")
    given = options.parse_args()
    digest, expected = hashlib.sha256(), 0
    credentials = pika.PlainCredentials(given.user, given.password)
    parameters = pika.ConnectionParameters(given.host, given.port, credentials=credentials)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.queue_declare("frames", durable=True)
        channel.basic_qos(prefetch_count=32)
        for method, properties, frame in channel.consume("frames"):
            channel.basic_ack(method.delivery_tag)
            if not frame:
                break
            if properties.message_id != str(expected):
                raise SystemExit(f"frame {expected} is missing: {properties.message_id} came instead")
            expected += 1
            digest.update(frame)
    print(f"received {expected} frames, SHA-256 {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
