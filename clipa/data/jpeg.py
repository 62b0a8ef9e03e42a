"""A JPEG that ends early: its header alone is changed, so that a decoder stops where the crop does.

Rows are stored from the top down, and what lies below a crop is 7 % of the rows on average (area 0.4 to 1.0): entropy
decoding, which no DCT scale saves, inverse DCT and colours. The rows above are the very same, bit for bit.
"""

from __future__ import annotations

_FRAMES = {0xC0, 0xC1, 0xC2}
"""Markers of frames of 8 bits by Huffman codes: baseline, extended, progressive (ITU-T T.81, table B.1)."""
_TABLES = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Markers that may stand before the frame: tables, restart interval, comments, application data."""
_END = b"\xff\xd9"


def ending_at(data: bytes, rows: int) -> tuple[bytes, int] | None:
    """(the JPEG with fewer rows, how many those are): at least `rows`, in whole units of its compression.

    None where it has no more rows than that, or is of another kind. A file without an end marker is cut: it stays as
    it is, so that the decoder tells.

    Whoever decodes the result must not be strict: a decoder takes what follows the last row for damage. So changed
    bytes go unnoticed, which are noticed at best (a third of them) by what is left over at the end of the whole image.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and len(data) > at + 20:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker in _FRAMES:
            break
        if marker not in _TABLES:
            return None
        at += 2 + size
    else:
        return None
    height, components = int.from_bytes(data[at + 5 : at + 7]), data[at + 9]
    if components not in (1, 3) or size != 8 + 3 * components or not data.endswith(_END):
        return None
    unit = 8 * max(data[at + 11 + 3 * n] & 15 for n in range(components))
    shorter = unit and -(-rows // unit) * unit
    if not 0 < shorter < height:
        return None
    return b"".join((data[: at + 5], shorter.to_bytes(2), data[at + 7 :])), shorter
