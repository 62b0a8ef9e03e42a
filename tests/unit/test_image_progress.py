"""The daemon's stream as values: recorded lines of Docker 20.10's classic builder."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from clipa.image.progress import Cached, Failed, Layer, Made, Output, Raw, Step, events

STREAM = r"""
{"stream":"Step 1/3 : FROM base AS system"}
{"stream":"\n"}
{"stream":" ---\u003e 84731ecd19f2\n"}
{"stream":"Step 2/3 : RUN apt-get update \u0026\u0026     apt-get install -y x"}
{"stream":" ---\u003e Using cache\n"}
{"stream":"words of the step before\n"}
{"stream":"Step 3/3 : RUN pip install nosuch"}
{"stream":" ---\u003e Running in 3f5e\n"}
{"stream":"\u001b[91mERROR: No matching distribution found for nosuch\n\u001b[0m"}
{"errorDetail":{"code":1},"error":"The command '/bin/sh -c pip install nosuch' returned a non-zero code: 1"}
{"stream":"never seen"}
"""
PULL = r"""
{"status":"Pulling from library/debian","id":"12-slim"}
{"status":"Downloading","progressDetail":{"current":1024,"total":4096},"progress":"[==>  ]","id":"3f5e"}
{"status":"Download complete","progressDetail":{},"id":"3f5e"}
{"aux":{"ID":"sha256:abc"}}
{"progressDetail":{},"aux":{"Tag":"1","Digest":"sha256:def","Size":528}}
"""


def _raws(text: str) -> list[Raw]:
    return [msgspec.json.decode(line, type=Raw) for line in text.strip().splitlines()]


def test_a_failing_step_keeps_its_last_lines_alone() -> None:
    found = list(events(_raws(STREAM)))
    assert found[0] == Step(1, 3, "FROM base AS system")
    assert found[1] == Step(2, 3, "RUN apt-get update && apt-get install -y x")
    assert found[2] == Cached()
    assert found[5] == Output("ERROR: No matching distribution found for nosuch")
    last = found[-1]
    assert isinstance(last, Failed)
    assert last.step == "RUN pip install nosuch"
    assert last.lines == ("ERROR: No matching distribution found for nosuch",)
    assert "non-zero code: 1" in last.error


def test_layers_and_digests() -> None:
    found = list(events(_raws(PULL)))
    assert found[1] == Layer("3f5e", "Downloading", 1024, 4096)
    assert found[2] == Layer("3f5e", "Download complete", 0, 0)
    assert found[3:] == [Made("sha256:abc"), Made("", "sha256:def")]


@given(st.lists(st.builds(Raw, stream=st.text(), status=st.text(), id=st.text(), error=st.text())))
def test_any_stream_is_read_and_nothing_follows_a_failure(raws: list[Raw]) -> None:
    found = list(events(raws))
    assert not any(isinstance(event, Failed) for event in found[:-1])
    assert any(raw.error for raw in raws) == bool(found and isinstance(found[-1], Failed))
