"""Names and passwords for registries, where `docker login` and `apptainer registry login` have left them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import docker.auth
import docker.errors

from clipa.errors import InputError
from clipa.spec.user_paths import expand_user

_OF_APPTAINER = ".apptainer/docker-config.json"  # the same format as Docker's, in the user's home


class Login(NamedTuple):
    """Who asks: a name with a password, or a token that a server of tokens exchanges."""

    user: str = ""
    password: str = ""
    identity: str = ""

    def __repr__(self) -> str:
        return f"Login({self.user})"


def find_login(host: str) -> Login | None:
    """The login for a registry: from DOCKER_CONFIG or ~/.docker/config.json with its helpers, else apptainer's.

    Raises:
        InputError: a file that cannot be read, or a helper that does not work.
    """
    for file in _files():
        try:
            with warnings.catch_warnings(action="ignore"):  # of a helper that is not there; the error says it too
                found = docker.auth.load_config(config_path=file).resolve_authconfig(host) or {}
        except (docker.errors.DockerException, ValueError) as error:
            raise InputError(
                f"the logins kept for registries cannot be read: {error}",
                where=file or "~/.docker/config.json",
                hint="docker login writes them anew; a helper that is not here is named by credsStore or credHelpers",
            ) from error
        known = {key.lower(): value for key, value in found.items()}
        login = Login(known.get("username") or "", known.get("password") or "", known.get("identitytoken") or "")
        if login.password or login.identity:
            return login
    return None


def _files() -> Iterator[str | None]:
    yield None  # where Docker looks by itself
    file = expand_user("~") / _OF_APPTAINER
    if file.is_file():
        yield str(file)
