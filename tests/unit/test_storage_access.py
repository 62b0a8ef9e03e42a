from __future__ import annotations

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage.access import choose, reached

GIB = 1 << 30
BOUND = {
    "a": Dataset(url="s3://one/laion", endpoint="http://a", profile="p"),
    "b": Dataset(url="s3://one/cc12m/{0..3}.tar", endpoint="http://b"),
    "c": Dataset(url="gs://one/laion", anonymous=True),
}


@pytest.mark.parametrize(
    ("url", "like"),
    [
        ("s3://one/cc12m/9.tar", "b"),
        ("s3://one/laion/x", "a"),
        ("gs://one/q", "c"),
        ("s3://two/laion", None),
        ("/one/laion", None),
    ],
)
def test_a_url_is_reached_as_its_neighbour_is(url: str, like: str | None) -> None:
    found = reached(url, BOUND)
    wanted = BOUND[like] if like else Dataset(url=url)
    assert found.url == url
    assert (found.endpoint, found.profile, found.anonymous) == (wanted.endpoint, wanted.profile, wanted.anonymous)


@pytest.mark.parametrize(
    ("access", "size", "limit", "wanted"),
    [
        ("stage", 9 * GIB, GIB, "stage"),
        ("stream", 1, 0, "stream"),
        ("auto", 9 * GIB, GIB, "stream"),
        ("auto", GIB, GIB, "stage"),
        ("auto", 9 * GIB, 0, "stage"),
    ],
)
def test_what_does_not_fit_is_streamed(access: str, size: int, limit: int, wanted: str) -> None:
    choice = choose(Dataset(url="s3://b", access=access), size, limit)  # type: ignore[arg-type]
    assert choice.access == wanted
    assert choice.why
