#!/usr/bin/env python3
"""A stand-in for `enroot`, which no package has: holds a command against what enroot documents, then does it.

`enroot import` is checked by its usage text (doc/cmd/import.md) and by the two grammars of its URI: that of enroot 3
(src/docker.sh, `docker::import`), and that of enroot 4, which takes the same. The image is then asked for at the very
URL that enroot makes of the URI, from a real registry, and a real squashfs is made with its labels in /etc/rc, as
enroot does. Layers are not unpacked. With CLIPA_TEST_ENROOT_LOG each command is written there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

_USER = r"[\w_.!~*'()%;:&=+$,@-]+"
_IMAGE, _TAG = r"[a-z0-9/._-]+", r"[A-Za-z0-9._:-]+"
_ENROOT_3 = re.compile(rf"docker://(({_USER})@)?(([^#]+)#)?({_IMAGE})(:({_TAG}))?")
_ENROOT_4 = re.compile(rf"docker://(({_USER})@)?([^#/@]+)#({_IMAGE})(:({_TAG}))?")
_OF_A_DAEMON = re.compile(r"dockerd://[A-Za-z0-9/._:-]+")
_KINDS = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


def faults(words: list[str]) -> list[str]:
    """What enroot would refuse."""
    if words[:1] != ["import"]:
        return [f"no such command: {words[:1]}"]
    found, rest = [], words[1:]
    while rest and rest[0].startswith("-") and rest[0] != "--":
        option, rest = rest[0], rest[1:]
        if option not in ("-a", "--arch", "-o", "--output"):
            found.append(f"no such option: {option}")
        elif not rest:
            found.append(f"{option} wants a value")
        rest = rest[1:]
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if len(rest) != 1:
        return [*found, f"one URI, not {len(rest)}"]
    if not _OF_A_DAEMON.fullmatch(rest[0]) and not (_ENROOT_3.fullmatch(rest[0]) and _ENROOT_4.fullmatch(rest[0])):
        found.append(f"Invalid image reference: {rest[0]}")
    target = words[words.index("--output") + 1] if "--output" in words else ""
    return [*found, f"File already exists: {target}"] if target and Path(target).exists() else found


def _config(uri: str) -> dict[str, object]:
    """The image's configuration, over HTTP as enroot asks: the tag, a digest too, is a part of the path."""
    parts = _ENROOT_3.fullmatch(uri)
    assert parts is not None
    scheme = "http" if os.environ.get("ENROOT_ALLOW_HTTP") else "https"
    start = f"{scheme}://{parts[4] or 'registry-1.docker.io'}/v2/{parts[5]}"
    asked = urllib.request.Request(f"{start}/manifests/{parts[7] or 'latest'}", headers={"Accept": _KINDS})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        manifest = json.load(answer)
    with urllib.request.urlopen(f"{start}/blobs/{manifest['config']['digest']}", timeout=10) as answer:
        return dict(json.load(answer)["config"])


def main() -> None:
    """Check, then write the file."""
    words = sys.argv[1:]
    if wrong := faults(words):
        sys.exit("\n".join(f"[ERROR] {one}" for one in wrong))
    if log := os.environ.get("CLIPA_TEST_ENROOT_LOG"):
        with open(log, "a") as file:
            print(" ".join(words), file=file)
    target, uri = words[words.index("--output") + 1], words[-1]
    try:
        labels = _config(uri).get("Labels") or {}
    except OSError as error:
        sys.exit(f"[ERROR] URL {uri} returned error code: {error}")
    assert isinstance(labels, dict)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "etc").mkdir()
        (Path(folder) / "etc" / "rc").write_text("".join(f"# {key} {value}\n" for key, value in labels.items()))
        subprocess.run(["mksquashfs", folder, target, "-all-root", "-no-progress", "-quiet"], check=True)


if __name__ == "__main__":
    main()
