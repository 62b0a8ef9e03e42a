"""Asking a registry over its HTTP API, without a daemon: what a tag is today (OCI distribution specification 1.1).

One question, and the two ways to say who asks: a password (Basic), or a token that another server gives for it
(Bearer). Passwords are those that `docker login` or `apptainer registry login` have left in the user's home. They go
to nobody but the registry and the server of tokens that it names, and never unencrypted beyond this machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import requests

from clipa.errors import InputError
from clipa.image.login import Login, find_login
from clipa.image.reference import Reference

_KINDS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
"""Indexes too: the digest of a tag of several platforms is its index's, and each machine finds its own in there."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_WORD = re.compile(r'([a-zA-Z]+)="([^"]*)"')
_LARGEST_MANIFEST = 4 << 20  # bytes; the specification says that registries need take no larger one
_CLIENT = "clipa"

Sign = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class _Token(msgspec.Struct, frozen=True):
    """What a server of tokens answers; the second name is OAuth's."""

    token: str = ""
    access_token: str = ""


class _Asked(NamedTuple):
    """An image at a registry, and the URL of its manifest."""

    reference: Reference
    url: str
    patience: float
    session: requests.Session


def digest_of(reference: Reference, patience: float = 20.0) -> str:
    """What a tag is today: the digest of its manifest or index.

    Args:
        reference: an image with a registry's host; the tag is `latest` where none is named.
        patience: seconds for each answer.

    Raises:
        InputError: the registry cannot be reached or refuses, or there is no such image.
    """
    host, repository = reference.api
    path = f"{host}/v2/{repository}/manifests/{reference.tag or 'latest'}"
    with requests.Session() as session:
        try:
            try:
                return _digest(_Asked(reference, f"https://{path}", patience, session))
            except requests.exceptions.ConnectionError as error:
                if not reference.is_on_this_machine or _is_about_trust(error):
                    raise
            return _digest(_Asked(reference, f"http://{path}", patience, session))
        except (requests.exceptions.RequestException, ValueError) as error:
            raise _unreachable(reference, error) from error


def _digest(asked: _Asked) -> str:
    """HEAD, which costs nothing of the quota of pulls; GET where the registry does not say the digest."""
    sign: Sign = _as_it_is
    answer = _ask(asked, "HEAD", sign)
    if answer.status_code == 401:
        sign = _signed(asked, answer.headers.get("WWW-Authenticate", ""))
        answer = _ask(asked, "HEAD", sign)
    said = answer.headers.get("Docker-Content-Digest", "")
    if answer.status_code == 200 and _DIGEST.fullmatch(said):
        return said
    if answer.status_code in (200, 405):
        answer = _ask(asked, "GET", sign)
        if answer.status_code == 200:
            return f"sha256:{hashlib.sha256(_read(answer)).hexdigest()}"
    raise _refused(asked.reference, answer)


def _ask(asked: _Asked, method: str, sign: Sign) -> requests.Response:
    return asked.session.request(
        method, asked.url, headers={"Accept": _KINDS}, auth=sign, timeout=asked.patience, stream=True
    )


def _read(answer: requests.Response) -> bytes:
    body = answer.raw.read(_LARGEST_MANIFEST + 1, decode_content=True)
    if len(body) > _LARGEST_MANIFEST:
        raise ValueError(f"a manifest of more than {_LARGEST_MANIFEST >> 20} MiB")
    return bytes(body)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No name and no password. Said in so many words, because requests would look into ~/.netrc of itself."""
    return request


def _signed(asked: _Asked, challenge: str) -> Sign:
    """How the registry wants to be asked, by what it said."""
    way, _, rest = challenge.partition(" ")
    words = {key.lower(): value for key, value in _WORD.findall(rest)}
    login = find_login(asked.reference.host)
    if way.lower() == "basic":
        if login is None or not login.password:
            raise _not_allowed(asked.reference, "it wants a name and a password, and none is known here")
        return requests.auth.HTTPBasicAuth(login.user, login.password)
    if way.lower() != "bearer" or "realm" not in words:
        raise InputError("the registry asks for a way to log in that clipa does not know", where=asked.reference.name,
                         allowed="Basic, Bearer", hint="name the digest: HOST/NAME@sha256:...")  # fmt: skip
    token = _token(asked, words, login)

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _token(asked: _Asked, words: dict[str, str], login: Login | None) -> str:
    """A token from the server that the registry names, for the password or the identity token of a login."""
    url = words["realm"]
    if urlsplit(url).scheme != "https" and not asked.reference.is_on_this_machine:
        raise InputError("the registry names a server of tokens that is not encrypted", where=url)
    about = {
        "service": words.get("service", ""),
        "scope": words.get("scope", "") or f"repository:{asked.reference.api[1]}:pull",
    }
    if login and login.identity:
        form = {**about, "grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": login.identity}
        answer = asked.session.post(url, data=form, auth=_as_it_is, timeout=asked.patience)
    else:
        sign = requests.auth.HTTPBasicAuth(login.user, login.password) if login else _as_it_is
        answer = asked.session.get(url, params=about, auth=sign, timeout=asked.patience)
    if answer.status_code != 200:
        raise _refused(asked.reference, answer)
    try:
        found = msgspec.json.decode(answer.content, type=_Token)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = _Token()
    if not (found.token or found.access_token):
        raise InputError("the registry's server of tokens gives none", where=url)
    return found.token or found.access_token


def _refused(reference: Reference, answer: requests.Response) -> InputError:
    """A status as an error with its cure."""
    status = answer.status_code
    if status in (401, 403):
        return _not_allowed(reference, f"it answers {status}")
    where = f"{reference.name}:{reference.tag or 'latest'}"
    if status == 404:
        return InputError(
            "the registry has no image of this name and tag",
            where=where,
            hint=f"look for a typing error, or send it there: clipa image push latest {where}",
        )
    if status == 429:
        again = answer.headers.get("Retry-After", "")
        when = f"in {again} s" if again.isdecimal() else "later"
        return InputError(
            "the registry answers no more questions for now: its limit is reached (429)",
            where=where,
            hint=f"ask again {when}; who has logged in may ask more often: docker login {reference.host}",
        )
    return InputError(f"the registry answers {status} {answer.reason}", where=where, hint="ask again later")


def _not_allowed(reference: Reference, why: str) -> InputError:
    return InputError(
        f"the registry does not show this image: {why}",
        where=reference.name,
        hint=f"docker login {reference.host} (or: apptainer registry login --username NAME docker://{reference.host}), "
        "or look for a typing error: many registries say the same of an image that is not there",
    )


def _is_about_trust(error: Exception) -> bool:
    """Whether TLS is spoken there, with a certificate that cannot be trusted: no reason to speak plainly."""
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _unreachable(reference: Reference, error: Exception) -> InputError:
    if _is_about_trust(error):
        return InputError("the registry's certificate cannot be trusted", where=reference.host,
                          hint="REQUESTS_CA_BUNDLE=FILE names the certificates of your site")  # fmt: skip
    if isinstance(error, requests.exceptions.Timeout):
        reason = "it does not answer"
    else:
        reason = re.sub(r"^.*?(\[Errno -?\d+\] )", "", str(error)).rstrip("'\")>") or type(error).__name__
    return InputError(
        f"the registry cannot be reached: {reason}",
        where=reference.host,
        hint="HTTPS_PROXY and NO_PROXY count. A file needs no registry: clipa image export latest FOLDER/clipa.sif",
    )
