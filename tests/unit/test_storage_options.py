from __future__ import annotations

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage import options
from clipa.storage.options import azure_account
from clipa.storage.store import _digest

CONNECTION = "DefaultEndpointsProtocol=http;AccountName=acc;AccountKey=a2V5==;BlobEndpoint=http://127.0.0.1:1/acc"


def test_an_account_of_azure_is_found_where_its_tools_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "of-az")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "k")
    assert azure_account(Dataset(url="az://box/x"))[:2] == ("of-az", "k")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION)
    found = azure_account(Dataset(url="az://box/x"))
    assert found[:4] == ("acc", "a2V5==", "", "http://127.0.0.1:1/acc")
    assert options.for_fsspec(Dataset(url="az://box/x"))["connection_string"] == CONNECTION


def test_a_url_names_its_account_and_another_accounts_connection_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION)
    for account, connection in (("acc", CONNECTION), ("other", "")):
        source = Dataset(url=f"abfss://box@{account}.dfs.core.windows.net/x")
        found = azure_account(source)
        assert (found.name, found.connection) == (account, connection)
        assert options.for_fsspec(source).get("connection_string", "") == connection


def test_the_endpoint_of_gcs_is_that_of_googles_own_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9000")
    emulated = Dataset(url="gs://b/x")
    assert options.endpoint_of(emulated) == "http://127.0.0.1:9000"
    assert options.for_fsspec(emulated)["token"] == "anon"
    own = Dataset(url="gs://b/x", endpoint="https://gcs.example.org")
    assert "token" not in options.for_fsspec(own), "an endpoint of one's own asks for credentials"
    assert options.endpoint_of(Dataset(url="hf://datasets/a/b")) == ""


@pytest.mark.parametrize(
    ("told", "digest"),
    [
        ({"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==", "crc32c": "AAAAAA=="}, "md5:d41d8cd98f00b204e9800998ecf8427e"),
        ({"crc32c": "4waSgw=="}, "crc32c:e3069283"),
        ({"content_settings": {"content_md5": bytearray(16)}}, f"md5:{'00' * 16}"),
        ({"content_settings": {"content_md5": None}, "md5": "not base64"}, ""),
        ({"crc32c": "%"}, ""),
    ],
)
def test_digests_are_those_that_the_store_tells(told: dict[str, object], digest: str) -> None:
    assert _digest(told) == digest
