from __future__ import annotations

import pytest

from tests.services.require import require


def test_what_the_machine_lacks_is_a_skip_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    require(True, "is there")
    with pytest.raises(pytest.skip.Exception, match="needs a thing"):
        require(False, "needs a thing")


def test_in_ci_it_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    require(True, "is there")
    with pytest.raises(pytest.fail.Exception, match="needs a thing"):
        require(False, "needs a thing")
