from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipa.errors import InputError
from clipa.storage.pattern import expand_braces, matcher, missing, redacted, require_no_secret, split
from tests.services.require import require

WORD = st.text("abz019-_.", max_size=4)
NUMBER = st.integers(0, 130).flatmap(lambda n: st.integers(0, 5).map(lambda w: str(n).zfill(w)))
RANGE = st.tuples(NUMBER, NUMBER).map(lambda pair: "{" + "..".join(pair) + "}")
COMMAS = st.lists(WORD.filter(lambda w: ".." not in w), min_size=2, max_size=4).map(lambda ws: "{" + ",".join(ws) + "}")
PATTERN = st.lists(WORD | RANGE | COMMAS, min_size=1, max_size=3).map(lambda parts: "x" + "".join(parts) + ".tar")


@settings(max_examples=25)
@given(st.lists(PATTERN, min_size=1, max_size=10))
@example(["x{8..11}.tar", "x{08..11}.tar", "x{0..9}.tar", "x{3..1}.tar", "x{00..5}.tar", "x{5..005}{a,b}.tar"])
def test_braces_expand_as_bash_does(patterns: list[str]) -> None:
    require(shutil.which("bash") is not None, "needs bash to compare with")
    script = "for word in " + " ".join(patterns) + '; do printf "%s\\n" "$word"; done'
    said = subprocess.run(["bash", "-fc", script], capture_output=True, text=True, check=True).stdout.split()
    assert [name for pattern in patterns for name in expand_braces(pattern)] == said


@pytest.mark.parametrize(
    "pattern", ["{0..1000000}", "{a}", "{a..c}", "{0..9}{0..99999}{0..9}", "{1,2", "1}", "{a,{b,c}}"]
)
def test_braces_that_cannot_be_read_are_refused(pattern: str) -> None:
    with pytest.raises(InputError):
        expand_braces(pattern)


def test_a_star_stays_in_its_folder() -> None:
    fits = matcher("*.tar")
    assert fits("a.tar")
    assert not fits("sub/a.tar")
    assert not fits("a.tar.idx")


def test_a_long_list_of_names_costs_one_look_up_each() -> None:
    names = [f"{n:06d}.tar" for n in range(200_000)]  # as a scan of all patterns for each name: 4e10 steps
    fits = matcher("{000000..199999}.tar")
    assert all(fits(name) for name in names)
    assert missing("{000000..199999}.tar", names[1:]) == ["000000.tar"]


@pytest.mark.parametrize(
    ("url", "folder", "pattern"),
    [
        ("s3://b/laion/", "s3://b/laion", ""),
        ("s3://b/laion", "s3://b/laion", ""),
        ("s3://b/laion/{0..3}.tar", "s3://b/laion", "{0..3}.tar"),
        ("/x/*.tar", "/x", "*.tar"),
        ("s3://b/laion/00000.tar", "s3://b/laion", "00000.tar"),
    ],
)
def test_a_url_is_a_folder_or_a_pattern(url: str, folder: str, pattern: str) -> None:
    assert split(url) == (folder, pattern)


def test_a_pattern_in_a_folder_is_refused() -> None:
    with pytest.raises(InputError, match="last part"):
        split("s3://b/*/0.tar")


def test_no_password_in_a_text() -> None:
    assert redacted("cannot reach https://me:se@cret@host/x") == "cannot reach https://***@host/x"


def test_the_password_of_a_url_is_hidden_wherever_it_stands() -> None:
    assert redacted('bad bucket "me:se@cret@b"', "s3://me:se@cret@b/x") == 'bad bucket "***@b"'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abfss://box@acc.dfs.core.windows.net/x", "abfss://box@acc.dfs.core.windows.net/x"),
        ("abfss://me:hush@acc.dfs.core.windows.net/x", "abfss://***@acc.dfs.core.windows.net/x"),
        ('GET "https://h/x?X-Amz-Signature=hush&a=b" failed', 'GET "https://h/x?***" failed'),
        ("https://h/x/?.tar", "https://h/x/?.tar"),
    ],
)
def test_a_container_is_no_secret_and_a_signature_is(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_the_query_of_the_url_is_hidden_wherever_it_stands() -> None:
    assert redacted("no such key: x?sig=hush", "https://h/x?sig=hush") == "no such key: x?***"


@pytest.mark.parametrize("url", ["http://me:hush@h/x", "https://h/x?sig=hush", "s3://k:hush@b/x"])
def test_a_secret_in_a_url_is_kept_out_of_records(url: str) -> None:
    with pytest.raises(InputError, match="would be written into the run's records") as caught:
        require_no_secret(url, "datasets.laion")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "s3://b/x/{0..1}.tar", "https://h/x/?.tar", "abfss://box@acc.dfs.core.windows.net/x"]
)
def test_other_urls_may_be_recorded(url: str) -> None:
    require_no_secret(url, "publish")
