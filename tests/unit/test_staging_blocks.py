from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clipa.staging import blocks
from clipa.staging.blocks import Blocks
from clipa.storage.wire import BLOCK

SIZES = (1, 255, 256 << 10, BLOCK, BLOCK - 1, 3 * BLOCK + 7)


@pytest.mark.parametrize("known", [True, False], ids=["past the cache where it can be", "through it"])
def test_what_is_added_is_in_the_file_and_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(blocks, "_FILE_SYSTEMS", frozenset())
    seen: list[bytes] = []
    made = Blocks(tmp_path / "a", lambda block: seen.append(bytes(block)))
    parts = [os.urandom(size) for size in SIZES]
    for part in parts:
        made.append(part)
    whole = sum(SIZES) // BLOCK * BLOCK if made._direct else 0
    assert os.fstat(made.descriptor).st_size >= whole
    made.flush()
    made.close()
    assert (tmp_path / "a").read_bytes() == b"".join(parts) == b"".join(seen)


def test_a_file_system_that_refuses_half_way_is_written_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.write, []

    def write(descriptor: int, data: memoryview) -> int:
        if len(refused) < 1:
            refused.append(data.nbytes)
            raise OSError(errno.EINVAL, "unaligned")
        return real(descriptor, data[:1000])

    made = Blocks(tmp_path / "a", lambda block: None)
    made._direct = True
    monkeypatch.setattr(os, "write", write)
    made.append(b"x" * BLOCK)
    made.flush()
    made.close()
    assert refused
    assert (tmp_path / "a").read_bytes() == b"x" * BLOCK


def test_another_error_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    made = Blocks(tmp_path / "a", lambda block: None)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        made.append(b"x" * BLOCK)
    made.close()


def test_a_file_that_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        Blocks(tmp_path / "a", lambda block: None)
    assert (tmp_path / "a").read_bytes() == b"other"
