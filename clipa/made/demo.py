"""The data that clipa makes by itself: `python -m clipa.made.demo URL [--of digits|emoji] [--json]`.

Written as webdataset shards under URL/train, URL/val, URL/test and, for emoji, URL/unseen.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from clipa.errors import ClipaError, told
from clipa.made import digits, emoji
from clipa.made.splits import Written
from clipa.made.splits import write as write_made
from clipa.terminal import say, say_document

MAKERS = {"digits": digits.MAKER, "emoji": emoji.MAKER}


def write(url: str, kind: str = "digits") -> Written:
    """Write one of MAKERS' data sets under a URL; where its version is complete, only look.

    Raises:
        InputError: the URL can't be used.
        MissingPart: what the data are made of is not installed.
        StorageError: bytes could not be written.
    """
    return write_made(url, MAKERS[kind])


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m clipa.made.demo`: 0 done, 1 the work failed, 2 the URL is wrong or a part is missing."""
    parser = argparse.ArgumentParser(prog="clipa data demo", description="Write data that clipa makes, as shards.")
    parser.add_argument("url", help="where to: a folder, file:// or s3:// URL")
    parser.add_argument("--of", choices=MAKERS, default="digits", help="what to make")
    parser.add_argument("--json", action="store_true", help="print what is there as JSON")
    options = parser.parse_args(arguments)
    try:
        done = write(options.url, options.of)
    except ClipaError as error:
        return told(error)
    if options.json:
        say_document("clipa.data-demo/1", **msgspec.structs.asdict(done))
        return 0
    say(f"{done.url}: version {done.version}, {'written' if done.written else 'was there already'}")
    for name, split in done.splits.items():
        say(f"  {name:6}  {split.scans:5} images  {split.samples:6} samples  {split.shards} shards  {split.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
