"""What the markers before a JPEG's first scan say of the file; its pixels are not looked through.

Format: ITU-T T.81 (1992), annex B.
"""

from typing import NamedTuple

_BEGIN = b"\xff\xd8\xff"
_METADATA = 0xE1
"""Exif and XMP."""
_SCAN = 0xDA
_SEQUENTIAL = (0xC0, 0xC1)
"""Frames coded by Huffman that may come in one scan."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
"""What has no length, or does not belong here."""


class JpegMarkers(NamedTuple):
    metadata: bool
    """Whether Exif or XMP stands before the first scan, as far as is known: decoders read none that stands later."""
    one_scan: bool
    """Whether a decoder reads one scan and stops, whatever follows it."""


UNKNOWN = JpegMarkers(metadata=True, one_scan=False)


def jpeg_markers(data: bytes) -> JpegMarkers | None:
    """Returns what is known of a JPEG; None if the bytes are none. What decoders may read in two ways is unknown."""
    if not data.startswith(_BEGIN):
        return None
    position, colours, sequential, metadata = 2, 0, False, False
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        inside = position + 4
        position += 2 + length
        if marker in _ALONE or length < 2 or position > len(data):
            break
        if marker == _SCAN:
            whole = sequential and length > 2 and data[inside] == colours
            return JpegMarkers(metadata, one_scan=whole)
        if marker in _FRAMES:
            if colours or length < 8:
                break
            colours, sequential = data[inside + 5], marker in _SEQUENTIAL
        metadata = metadata or marker == _METADATA
    return UNKNOWN
