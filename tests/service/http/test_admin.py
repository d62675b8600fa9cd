"""Who may change what is served, by the keys that the settings name."""

from pathlib import Path

import pytest

from service.http.api_keys import ApiKeysFileError
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.live import check_error, serving

CLIENT, ADMIN = {"X-API-Key": "client"}, {"Authorization": "Bearer admin"}
OPEN, CLIENTS, ADMINS = {}, {"api_keys": ("client",)}, {"admin_keys": ("admin",)}


@pytest.mark.parametrize(
    ("settings", "headers", "reading", "writing"),
    [
        (OPEN, {}, 200, 200),
        (OPEN, CLIENT, 200, 200),
        (CLIENTS, {}, 401, 401),
        (CLIENTS, CLIENT, 200, 403),  # nobody may, until an admin's key is set
        (ADMINS, {}, 200, 401),
        (ADMINS, CLIENT, 200, 401),
        (ADMINS, ADMIN, 200, 200),
        (CLIENTS | ADMINS, {}, 401, 401),
        (CLIENTS | ADMINS, CLIENT, 200, 403),
        (CLIENTS | ADMINS, ADMIN, 200, 200),
        (CLIENTS | ADMINS, CLIENT | ADMIN, 200, 200),
    ],
)
def test_who_may_read_and_who_may_reload(
    settings: dict[str, tuple[str, ...]],
    headers: dict[str, str],
    reading: int,
    writing: int,
    models_dir: Path,
) -> None:
    with serving(models_dir, **settings) as (client, _):
        assert client.get("/models", headers=headers).status_code == reading
        answer = client.post("/models/reload", headers=headers)
        assert answer.status_code == writing
        if writing == 403:
            assert "an admin's" in check_error(answer, 403, "forbidden")
        if writing == 401:
            check_error(answer, 401, "unauthorized")


def test_where_no_admin_key_is_set_the_refusal_names_the_setting(models_dir: Path) -> None:
    with serving(models_dir, **CLIENTS) as (client, _):
        answer = client.post("/models/reload", headers=CLIENT)
        assert "VIOLA_ADMIN_KEYS" in check_error(answer, 403, "forbidden")


def test_admin_keys_come_from_a_file_too(models_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "admins"
    file.write_text("admin\n")
    with serving(models_dir, api_keys=("client",), admin_keys_file=file) as (client, _):
        assert client.post("/models/reload", headers=CLIENT).status_code == 403
        assert client.post("/models/reload", headers=ADMIN).status_code == 200


@pytest.mark.parametrize("name", ["api_keys_file", "admin_keys_file"])
def test_a_file_that_cannot_be_read_at_start_never_is_an_open_server(name: str, tmp_path: Path) -> None:
    with pytest.raises(ApiKeysFileError) as refused:
        create_app(Settings(**{name: tmp_path / "misspelt"}))
    assert f"{refused.value.kind}_KEYS_FILE" == name.upper()


def test_the_document_tells_of_the_refusal() -> None:
    document = create_app(Settings(admin_keys=("admin",))).openapi()
    assert "403" in document["paths"]["/models/reload"]["post"]["responses"]
    assert document["security"]
