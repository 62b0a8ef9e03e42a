"""Pure: the name of an image, as Docker's own grammar reads it (github.com/distribution/reference)."""

from __future__ import annotations

import re
from typing import NamedTuple

from clipa.errors import ConfigError

_HOST = re.compile(r"([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]+)?")
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REST = re.compile(
    rf"(?P<path>{_PART}(?:/{_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)
_HUB = ("docker.io", "index.docker.io")
_HUBS_API = "registry-1.docker.io"


class Reference(NamedTuple):
    """`[HOST/]PATH[:TAG][@DIGEST]`; `host` is empty where none is named: then it is the daemon's, or Docker Hub's."""

    host: str
    path: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """The repository, as it was written."""
        return f"{self.host}/{self.path}" if self.host else self.path

    @property
    def api(self) -> tuple[str, str]:
        """(host, repository) as the HTTP API of the registry wants them: Docker Hub's differ from what people write."""
        if self.host and self.host not in _HUB:
            return self.host, self.path
        return _HUBS_API, self.path if "/" in self.path else f"library/{self.path}"

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the registry is on loopback, where Docker takes plain HTTP too."""
        host = re.sub(r":[0-9]+$", "", self.host)
        return host in ("localhost", "[::1]") or bool(re.fullmatch(r"127(\.[0-9]{1,3}){3}", host))

    def at(self, digest: str) -> str:
        """The name that never moves."""
        return f"{self.name}@{digest}"


def parse(word: str) -> Reference:
    """The parts of an image's name.

    Raises:
        ConfigError: this is none.
    """
    host, slash, rest = word.partition("/")
    # Without a dot, a port or this one name, the first part is a name like the others.
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = "", word
    found = _REST.fullmatch(rest)
    if found is None or (host and not _HOST.fullmatch(host)):
        raise ConfigError("this is no name of an image", where=word,
                          allowed="[HOST[:PORT]/]name[/name...][:TAG][@sha256:...], names in lower case")  # fmt: skip
    return Reference(host, found["path"], found["tag"] or "", found["digest"] or "")


def parse_tag(word: str) -> Reference:
    """A name that can be given to an image: without a digest, which follows from what it holds.

    Raises:
        ConfigError: this is none.
    """
    found = parse(word)
    if found.digest:
        raise ConfigError("a digest cannot be given to an image", where=word, allowed="[HOST[:PORT]/]name[:TAG]")
    return found
