"""What a library's error means and what cures it: errors of fsspec's packages and of obstore in our words."""

from __future__ import annotations

import re
from typing import NamedTuple

from clipa.errors import ClipaError, InputError, StorageError


class Absent(InputError):
    """There is nothing at a URL."""


class Refused(InputError):
    """The store does not let us."""


class _Cause(NamedTuple):
    """What the text of an error gives away."""

    sign: re.Pattern[str]
    kind: type[ClipaError]
    what: str
    hint: str


_CREDENTIALS = {
    "s3": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID; anonymous = true for a public bucket)",
    "gs": "check the credentials (GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login; "
    "anonymous = true for a public bucket)",
    "az": "check the credentials (AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, "
    "az login; anonymous = true for a public container)",
    "hf": "check the token (HF_TOKEN, hf auth login), and that its owner has accepted the dataset's terms",
    "http": "check the URL; servers that list nothing, S3 among them, answer 403 also where there is nothing",
}
_WHERE = {
    "": "check the URL and the endpoint",
    "hf": "check the URL; what is private looks absent without a token that may read it (HF_TOKEN, hf auth login)",
}
_FORMS = {"hf": "hf://datasets/OWNER/NAME/FOLDER, hf://datasets/OWNER/NAME@REVISION/FOLDER"}
_FAMILY = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
_NO_CREDENTIALS = frozenset(
    ["NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound", "UnauthenticatedError"]
)
_REFUSED = frozenset(["ClientAuthenticationError", "PermissionDeniedError", "GatedRepoError", "UnauthenticatedError"])
_ABSENT = frozenset(["ResourceNotFoundError", "NotFoundError", "RepositoryNotFoundError", "EntryNotFoundError"])
"""Class names of azure, obstore and huggingface_hub, by what they mean."""
_NOT_TRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate")
_GONE = (404, 410)
_OFFLINE = "OfflineModeIsEnabled"
_FOR_GOOD = re.compile(r"non-2xx status code: 4(?!08|29)")
"""obstore has a class for some statuses only."""
_CAUSES = (
    _Cause(
        _NOT_TRUSTED,
        InputError,
        "the server's certificate is not trusted",
        "set AWS_CA_BUNDLE (s3://) or SSL_CERT_FILE to the certificate of the authority that signed it",
    ),
    _Cause(re.compile(_OFFLINE), InputError, "the hub's client is told to stay offline", "unset HF_HUB_OFFLINE"),
    _Cause(
        re.compile(r"ProxyConnectionError|[Cc]onnect to proxy|HttpProxyError|ProxyError"),
        StorageError,
        "the proxy does not answer",
        "check HTTP_PROXY and HTTPS_PROXY, and NO_PROXY for hosts that need none",
    ),
    _Cause(
        re.compile(r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint|\(301\)"),
        InputError,
        "the bucket is in another region",
        "give --region, region = beside the dataset's URL, or AWS_REGION",
    ),
    _Cause(
        re.compile(r"ExpiredToken|RequestExpired|TokenRefreshRequired|token .*expired", re.IGNORECASE),
        Refused,
        "the credentials have expired",
        "log in again (aws sso login, gcloud auth application-default login, az login), or renew the session's token",
    ),
    _Cause(
        re.compile(r"\(InvalidToken\)"),
        Refused,
        "the store does not know these credentials",
        _CREDENTIALS["s3"],
    ),
    _Cause(
        re.compile(r"\(400\).*HeadObject"),
        Refused,
        "the store refuses the request, and a HEAD does not say why",
        "mostly credentials that have expired, or a bucket in another region: clipa data index says which",
    ),
    _Cause(
        re.compile(r"RequestTimeTooSkewed"),
        Refused,
        "the clocks of the store and of this machine differ",
        "set this machine's clock (timedatectl, chronyc tracking)",
    ),
    _Cause(
        re.compile(
            r"Could not connect|Cannot connect|Connect call failed|Connection refused|Name or service not known"
            r"|name resolution|No address associated|Network is unreachable|No route to host|error trying to connect"
            r"|Failed to establish|Failed to resolve|Max retries exceeded"
        ),
        StorageError,
        "the server cannot be reached",
        "check the name and port of the endpoint, and that this machine has a way there (HTTPS_PROXY; compute nodes "
        "often have none: [slurm.stage], docs/slurm.md)",
    ),
)


def never_passes(error: BaseException) -> bool:
    """Whether trouble on a wire stays: a certificate that is not trusted, a request that is refused."""
    said = str(error)
    return type(error).__name__ == _OFFLINE or bool(_NOT_TRUSTED.search(said) or _FOR_GOOD.search(said))


def real(error: Exception) -> Exception:
    """What happened: fsspec's HTTP and the hub call absent whatever they cannot ask for; the reason is the cause."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and status_of(cause) not in _GONE:
        return real(cause)
    return error


def status_of(error: BaseException) -> int:
    """The HTTP status that an error carries; 0 where it carries none."""
    for word in ("status", "status_code", "code"):
        if isinstance(found := getattr(error, word, None), int):
            return found
    response = getattr(error, "response", None)
    return status_of(response) if response is not None and not isinstance(response, dict) else 0


def translated(error: Exception, scheme: str, where: str, said: str) -> ClipaError:
    """A library's error in our words.

    Args:
        error: what it raised.
        scheme: of the URL.
        where: the URL, without secrets.
        said: the text of the error, without secrets.
    """
    if isinstance(error, ClipaError):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    status = status_of(error)
    first = said.strip().partition("\n")[0]
    # Of a dataset that is gated huggingface_hub says both.
    refused = bool(names & (_NO_CREDENTIALS | _REFUSED))
    if not refused and (isinstance(error, FileNotFoundError) or names & _ABSENT or status in _GONE):
        return Absent("there is nothing at this URL", where=where, hint=_WHERE.get(scheme, _WHERE[""]))
    if isinstance(error, PermissionError) and scheme == "file":
        return InputError("the file system refuses access", where=where, hint="check owner and mode of the path")
    if scheme != "file":
        for cause in _CAUSES:
            if cause.sign.search(f"{type(error).__name__}: {said}"):
                return cause.kind(f"{cause.what}: {first}", where=where, hint=cause.hint)
    # gcsfs: OSError("Forbidden: ...")
    if refused or isinstance(error, PermissionError) or status in (401, 403) or first.startswith("Forbidden"):
        hint = _CREDENTIALS.get(_FAMILY.get(scheme, scheme), "check the credentials")
        return Refused(f"the store refuses access: {first}", where=where, hint=hint)
    if isinstance(error, ValueError):
        return InputError(f"the URL cannot be read: {first}", where=where, allowed=_FORMS.get(scheme, ""))
    if isinstance(error, NotImplementedError):
        return InputError(f"{scheme}:// cannot be written", where=where, hint="copy it with clipa data stage")
    return StorageError(f"the store failed: {type(error).__name__}: {first}", where=where)
