"""Numbered frames with checksums, which the demonstration's detector sends and its consumer checks.

There are no sockets here. A channel carries data frames and then one final frame, which says how many there were. A
frame is a header of 28 bytes and a payload. The header has, in big-endian order: the magic ``ScFr``, the version (u8),
the kind (u8: 1 data, 2 final), two zero bytes, the channel (u32), the number of the frame (u64; in a final frame the
count of data frames on this channel), the length of the payload (u32), and the CRC-32 of all this and the payload
(u32).

Frames are numbered over all channels: frame n belongs to channel n modulo the number of channels.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FRAME_BYTES = 1 << 20
"""The default length of a payload, in bytes."""
MAX_FRAME_BYTES = 16 << 20
"""The longest payload that a checker accepts, in bytes."""

_MAGIC = b"ScFr"
_VERSION = 1
_DATA = 1
_FINAL = 2
_HEADER = struct.Struct(">4sBBHIQI")
_CHECKSUM = struct.Struct(">I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_STAMP = struct.Struct(">Q")
_FAULTS_KEPT = 10


class FrameMaker:
    """Makes the frames of one channel in one buffer, which each frame overwrites.

    The payload is a random block, made once, with the number of the frame in its first bytes: it is cheap to make,
    cannot be compressed, and is different for each frame and each run.

    :raises ValueError: if `frame_bytes` is out of range.
    """

    def __init__(self, channel: int, frame_bytes: int = FRAME_BYTES) -> None:
        if not 1 <= frame_bytes <= MAX_FRAME_BYTES:
            raise ValueError(f"frame_bytes is {frame_bytes}: it can be 1 to {MAX_FRAME_BYTES}")
        self.channel = channel
        self.frames = 0
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._whole = memoryview(bytearray(HEADER_BYTES) + os.urandom(frame_bytes))

    @property
    def sha256(self) -> bytes:
        """The digest of all payloads made so far."""
        return self._digest.digest()

    def data(self, number: int, length: int) -> memoryview:
        """Return the data frame with this number and a payload of `length` bytes. It is valid until the next call."""
        frame = self._whole[: HEADER_BYTES + length]
        payload = frame[HEADER_BYTES:]
        stamp = _STAMP.pack(number)[-length:]
        payload[: len(stamp)] = stamp
        self._write_header(frame, _DATA, number)
        self._digest.update(payload)
        self.frames += 1
        self.bytes += length
        return frame

    def final(self) -> memoryview:
        """Return the final frame, with the count of the data frames made so far."""
        frame = self._whole[:HEADER_BYTES]
        self._write_header(frame, _FINAL, self.frames)
        return frame

    def _write_header(self, frame: memoryview, kind: int, number: int) -> None:
        payload = frame[HEADER_BYTES:]
        _HEADER.pack_into(frame, 0, _MAGIC, _VERSION, kind, 0, self.channel, number, len(payload))
        _CHECKSUM.pack_into(frame, _HEADER.size, zlib.crc32(payload, zlib.crc32(frame[: _HEADER.size])))


FaultKind = Literal["corrupt", "lost", "repeated", "late", "foreign", "truncated", "rubbish"]


@dataclass(frozen=True)
class Fault:
    """A fault of a channel: its kind, and a sentence about it."""

    kind: FaultKind
    text: str


class FrameChecker:
    """Checks the bytes of one channel.

    Read into `space()`, then call `received()` with the number of bytes; call `ended()` at the end of the connection.
    A checker never raises: the first faults are in `faults`, and all are counted. `frames` and `bytes` count frames
    that are intact and arrive for the first time; `sha256` is over every payload that arrived, so it shows any fault.

    :param channel: the number of this channel.
    :param channels: the number of channels over which frames are numbered.
    """

    def __init__(self, channel: int, channels: int) -> None:
        self.channel = channel
        self.channels = channels
        self.frames = 0
        self.bytes = 0
        self.corrupt = 0
        self.repeated = 0
        self.faults: list[Fault] = []
        self.fault_count = 0
        self.complete = False
        """True if the final frame has arrived."""
        self.finished = False
        """True if the channel has ended, with or without a fault: no more bytes are to be read."""
        self._digest = hashlib.sha256()
        self._expected = channel
        self._missing: list[tuple[int, int]] = []
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._buffer = memoryview(bytearray(FRAME_BYTES))
        self._payload: memoryview | None = None
        self._filled = 0

    @property
    def sha256(self) -> bytes:
        """The digest of all payloads, in the order of their arrival."""
        return self._digest.digest()

    @property
    def lost(self) -> int:
        """The number of frames that are known to be missing."""
        return sum((stop - start) // self.channels for start, stop in self._missing)

    @property
    def _part(self) -> memoryview:
        return self._header if self._payload is None else self._payload

    def space(self) -> memoryview:
        """Return the buffer for the next bytes. It is never empty before the channel is finished."""
        return self._part[self._filled :]

    def received(self, count: int) -> None:
        """Check `count` bytes (more than 0, at most the length of `space()`) that were written into `space()`."""
        self._filled += count
        if self.complete:
            self._rubbish("bytes after the final frame", self._filled)
        elif self._filled == len(self._part):
            if self._payload is None:
                self._begin_frame()
            else:
                self._end_frame(self._payload)

    def ended(self, how: str = "closed") -> None:
        """Note that the connection has ended.

        :param how: completes the sentence "the connection was ...".
        """
        if not self.finished and not self.complete:
            where = f"before frame {self._expected}"
            if self._payload is not None or self._filled:
                got = self._filled + (HEADER_BYTES if self._payload is not None else 0)
                where = f"{got} bytes into frame {self._expected}"
            self._fault("truncated", f"the connection was {how} {where}, without a final frame")
        elif not self.finished and how != "closed":
            self._fault("truncated", f"the connection was {how} after the final frame instead of closed")
        self.finished = True

    def _begin_frame(self) -> None:
        magic, version, kind, zero, _channel, _number, length = _HEADER.unpack_from(self._header)
        good = (magic, version, zero) == (_MAGIC, _VERSION, 0) and length <= MAX_FRAME_BYTES
        if not good or kind not in (_DATA, _FINAL) or (kind == _FINAL) != (length == 0):
            self._rubbish(f"no frame where frame {self._expected} should begin", HEADER_BYTES)
            return
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        self._payload = self._buffer[:length]
        self._filled = 0
        if not length:
            self._end_frame(self._payload)

    def _end_frame(self, payload: memoryview) -> None:
        _magic, _version, kind, _zero, channel, number, _length = _HEADER.unpack_from(self._header)
        (stated,) = _CHECKSUM.unpack_from(self._header, _HEADER.size)
        actual = zlib.crc32(payload, zlib.crc32(self._header[: _HEADER.size]))
        self._digest.update(payload)
        if stated != actual:
            self._corrupt_frame(kind, stated, actual)
        elif channel != self.channel:
            self._fault("foreign", f"frame {number} of channel {channel} came here")
        elif kind == _FINAL:
            self._final_frame(number)
        else:
            self._data_frame(number, len(payload))
        self._payload = None
        self._filled = 0

    def _data_frame(self, number: int, length: int) -> None:
        if number % self.channels != self.channel:
            self._fault("foreign", f"frame {number} came here, which belongs to channel {number % self.channels}")
            return
        if number < self._expected and not self._found(number):
            self.repeated += 1
            self._fault("repeated", f"frame {number} came a second time")
            return
        if number < self._expected:
            self._fault("late", f"frame {number} came after frame {self._expected - self.channels}")
        else:
            self._skip_to(number, f"frame {number} came instead")
            self._expected = number + self.channels
        self.frames += 1
        self.bytes += length

    def _corrupt_frame(self, kind: int, stated: int, actual: int) -> None:
        """Count a corrupt frame as the expected one, since its number may be corrupt too."""
        self.corrupt += 1
        name = "the final frame" if kind == _FINAL else f"frame {self._expected}"
        self._fault("corrupt", f"{name} is corrupt: its checksum is {actual:08x}, and it says {stated:08x}")
        if kind == _DATA:
            self._expected += self.channels

    def _final_frame(self, count: int) -> None:
        self.complete = True
        end = self.channel + count * self.channels
        if end < self._expected:
            more = (self._expected - end) // self.channels
            self._fault("rubbish", f"the final frame says that there were {count} frames, and {more} more came")
        else:
            self._skip_to(end, f"the final frame says that there were {count}")

    def _skip_to(self, number: int, why: str) -> None:
        """Note the frames from the expected one to the one before `number` as missing."""
        count = (number - self._expected) // self.channels
        if count:
            last = number - self.channels
            what = f"frame {last} is lost" if count == 1 else f"frames {self._expected} to {last} ({count}) are lost"
            self._missing.append((self._expected, number))
            self._fault("lost", f"{what}: {why}")

    def _found(self, number: int) -> bool:
        """Remove a frame from the missing ones. Return False if it was not missing."""
        for index, (start, stop) in enumerate(self._missing):
            if start <= number < stop:
                rest = [(start, number), (number + self.channels, stop)]
                self._missing[index : index + 1] = [gap for gap in rest if gap[0] < gap[1]]
                return True
        return False

    def _rubbish(self, what: str, length: int) -> None:
        self._fault("rubbish", f"{what}: {self._header[: min(length, 16)].hex(' ')} ...")
        self.finished = True

    def _fault(self, kind: FaultKind, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _FAULTS_KEPT:
            self.faults.append(Fault(kind, f"channel {self.channel}: {text}"))


def whole_digest(channels: Sequence[bytes]) -> str:
    """Return the digest of a stream in hex: the SHA-256 of its channels' digests, in the order of the channels."""
    return hashlib.sha256(b"".join(channels)).hexdigest()
