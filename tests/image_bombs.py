"""Small image files that declare more pixels than memory holds."""

import struct
import zlib

SIDE = 50_000  # pixels; 7.5 GB in RGB


def bomb(side: int = SIDE) -> bytes:
    """A small PNG that declares `side` x `side` black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
