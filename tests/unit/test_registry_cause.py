"""The same error twice: recognized although addresses, process numbers and times differ, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.host.decide import Trace, Verdict, decide
from clipa.registry.cause import normalized, without_addresses

_NUMBER = st.integers(1, 60_000)


@pytest.mark.parametrize("template", [
    "page.jpg: cannot identify image file <_io.BytesIO object at 0x7f{0:010x}>",
    "DataLoader worker (pid {0}) is killed by signal: Killed",
    "DataLoader worker (pid(s) {0}) exited unexpectedly", "process {0} ended", "/proc/{0}/fd is gone",
    "bind to port {0} failed", "connect to 127.0.0.1:{0:05d} refused", "[Errno 2] '/tmp/pymp-{0:08d}/listener'",
    "the request timed out after {0}.5 s", "waited {0}ms", "at 2026-11-29T10:01:00.{0}Z refused",
    "TCPStore(10.0.0.7:{0:05d}) closed", "Segfault at address 0x{0:012x}", "retry after {0} seconds",
])  # fmt: skip
@given(first=_NUMBER, second=_NUMBER)
def test_what_differs_each_time_is_not_part_of_the_cause(template, first, second):
    assert normalized(template.format(first)) == normalized(template.format(second))


@pytest.mark.parametrize(("one", "other"), [
    ("shard 00012.tar is cut", "shard 00013.tar is cut"), ("HTTP 404", "HTTP 500"), ("step 30", "step 60"),
    ("3 of 8 bytes", "4 of 8 bytes"), ("rank 1 failed", "rank 2 failed"), ("got 256", "got 77"),
    ("a/0x1.jpg", "a/0x2.jpg"), ("version 1.2.3", "version 1.2.4"), ("s3://b/2026/x.tar", "s3://b/2027/x.tar"),
])  # fmt: skip
def test_numbers_that_say_what_is_wrong_stay(one, other):
    assert normalized(one) != normalized(other)


def test_people_see_no_addresses():
    assert without_addresses("x <_io.BytesIO object at 0x7f0012ab34cd> y") == "x <_io.BytesIO object> y"


def _decided(first, second):
    history = [Trace(0, 0, "failed", first), Trace(0, 0, "failed", second)]
    return decide(Verdict("failed", second, retry=True), history, False, 5)


def test_an_error_with_an_address_stops_a_run_after_its_second_attempt():
    verdict, final = _decided(*(f"cannot identify image file <_io.BytesIO object at {n:#x}>" for n in (2**40, 2**41)))
    assert final
    assert "same error twice" in verdict.error


def test_a_full_disk_twice_is_tried_again():
    assert not _decided(*["OSError: [Errno 28] No space left on device"] * 2)[1]
