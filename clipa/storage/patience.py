"""How long a store is given: growing pauses with jitter while trouble may pass, until nothing came for too long."""

from __future__ import annotations

import errno
import random
import socket
import time

from clipa.storage.causes import never_passes

GIVE_UP_S = 120.0
"""Seconds without progress after which a request has failed. An outage of half a minute must not fail a run."""
_LONGEST_PAUSE_S = 8.0

_WAY = (errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH)
_MAY_PASS = frozenset(
    (errno.EIO, errno.EREMOTEIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EHOSTUNREACH, socket.EAI_AGAIN, *_WAY)
)
"""s3fs turns HTTP 500 into EREMOTEIO, 503 and SlowDown into EBUSY, and codes that it does not know into EIO."""
_WIRE_ERRORS = frozenset(
    [
        "HTTPClientError",
        "ConnectionError",
        "IncompleteReadError",
        "ResponseParserError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "GenericError",
        "ServiceRequestError",
        "ServiceResponseError",
        "ReadTimeout",
        "ConnectTimeout",
    ]
)
"""Class names for trouble on the way in botocore, aiohttp, obstore, azure and requests (no import of any of them:
a store that is not used need not be installed)."""
_LIBRARIES = frozenset(["aiohttp", "botocore", "aiobotocore", "obstore", "azure", "requests", "httpx", "gcsfs"])


class Patience:
    """One piece of work that may be tried again. `progress()` starts the clock anew."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = GIVE_UP_S if seconds is None else seconds
        self.progress()

    def progress(self) -> None:
        """Something came."""
        self._since = time.monotonic()
        self._deadline = self._since + self._seconds
        self._again = 0

    @property
    def waited(self) -> float:
        """Seconds since something came."""
        return time.monotonic() - self._since

    @property
    def left(self) -> float:
        """Seconds until it is given up."""
        return self._deadline - time.monotonic()

    def pause(self, error: Exception) -> bool:
        """Wait a while after an error; False when trying again cannot help or has been tried for too long."""
        longest = min(_LONGEST_PAUSE_S, 0.2 * 2.0 ** min(self._again, 16))
        pause = random.uniform(0, longest)  # noqa: S311
        if not may_pass(error) or time.monotonic() + pause > self._deadline:
            return False
        self._again += 1
        time.sleep(pause)
        return True


def may_pass(error: BaseException) -> bool:
    """Time-outs, resets and 5xx may pass; everything else will be the same the next time."""
    if never_passes(error):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _MAY_PASS
    if type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return False
    status = getattr(error, "status", None) or getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return any(kind.__name__ in _WIRE_ERRORS for kind in type(error).__mro__)
