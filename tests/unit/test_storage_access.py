from __future__ import annotations

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage.access import choose, reached, starts

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


@pytest.mark.parametrize(
    ("samples", "shards", "alone", "early", "why"),
    [
        (1000, 10, False, True, "others are staged meanwhile"),
        (1000, 10, True, False, ""),  # staging is a job of its own
        (100, 10, False, False, ""),  # a single window, needed at once
        (1000, 1, False, False, ""),
        (None, 10, False, False, "does not say how many samples"),
        (None, 10, True, False, ""),
    ],
)
def test_training_begins_before_all_is_staged_where_the_order_is_known_and_it_helps(
    samples: int | None, shards: int, alone: bool, early: bool, why: str
) -> None:
    start = starts(samples, shards, 100, alone)
    assert start.early is early
    assert why in start.why
    assert bool(why) == bool(start.why)


def test_of_a_mixture_what_does_not_fit_beside_the_others_is_streamed() -> None:
    auto = Dataset(url="s3://b", access="auto")
    assert choose(auto, GIB, 2 * GIB, taken=GIB).access == "stage"
    choice = choose(auto, GIB + 1, 2 * GIB, taken=GIB)
    assert choice.access == "stream"
    assert choice.why == "1.0 GiB do not fit the cache's 2.0 GiB beside the 1.0 GiB before it"
