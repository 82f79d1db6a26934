"""python link_capture.py LINK FILE: keep every frame that crosses a link, until asked to end.

It says `listening`, and at its end how many frames it has missed.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ALL_PROTOCOLS, SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 3, 33, 263, 6
IPV4, TCP = 0x0800, 6
LARGEST = 1 << 18
"""A veth hands on segments whole, of up to 64 KiB and more."""


def capture(link: str, to: Path) -> int:
    """Keep frames, each after its length, until a signal comes; how many were missed."""
    ends = []
    signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS)) as frames,
        to.open("wb") as out,
    ):
        frames.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
        frames.bind((link, ALL_PROTOCOLS))
        frames.settimeout(0.1)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while not ends:
            with contextlib.suppress(TimeoutError):
                while True:
                    frame = frames.recv(LARGEST)
                    out.write(struct.pack("!I", len(frame)) + frame)
        statistics = frames.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return int(struct.unpack("II", statistics)[1])


def streams(kept: bytes) -> dict[tuple[str, str], bytes]:
    """What TCP carried from one address to the other, each connection's bytes in their order."""
    segments: dict[tuple[str, int, str, int], dict[int, bytes]] = defaultdict(dict)
    for frame in _frames(kept):
        packet = frame[14:]
        if struct.unpack("!H", frame[12:14])[0] != IPV4 or packet[9] != TCP:
            continue
        segment = packet[(packet[0] & 15) * 4 : struct.unpack("!H", packet[2:4])[0]]
        source, target, number = struct.unpack("!HHI", segment[:8])
        data = segment[(segment[12] >> 4) * 4 :]
        addresses = [socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16)]
        connection = segments[addresses[0], source, addresses[1], target]
        if len(data) > len(connection.get(number, b"")):
            connection[number] = data
    found: dict[tuple[str, str], bytes] = defaultdict(bytes)
    for (source_address, _, target_address, _), connection in segments.items():
        found[source_address, target_address] += _in_order(connection)
    return dict(found)


def _frames(kept: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(kept):
        length = struct.unpack_from("!I", kept, at)[0]
        yield kept[at + 4 : at + 4 + length]
        at += 4 + length


def _in_order(segments: dict[int, bytes]) -> bytes:
    """A connection's bytes, what was sent twice once."""
    if not segments:
        return b""
    first = next(iter(segments))  # numbers wrap around: they are counted from the first one seen
    place = {(n - first + (1 << 31)) % (1 << 32): data for n, data in segments.items()}
    found, at = bytearray(), min(place)
    for start in sorted(place):
        data = place[start]
        found += data[max(0, at - start) :]
        at = max(at, start + len(data))
    return bytes(found)


if __name__ == "__main__":
    missed = capture(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write(f"{missed}\n")
