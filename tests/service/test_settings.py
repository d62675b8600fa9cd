"""Settings from the environment, and the page that is generated from them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import DOCS, Settings, settings_page, unknown_variables


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("https://a.example/", "without a slash"),
        ("https://a.example/page", "without a slash"),
        ("a.example", "scheme://host is missing"),
        ("https://", "scheme://host is missing"),
        ("https://*.a.example", "for no part of one"),
        ("https://A.example", "small letters"),
        ("https://a.example:443", "the usual port"),
        ("http://a.example:80", "the usual port"),
        ("https://user@a.example", "more than scheme"),
    ],
)
def test_an_origin_that_no_page_can_have_is_refused_with_a_sentence(origin: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Settings(cors_origins=f"https://fine.example, {origin}")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://a.example", "http://localhost:3000", "https://[::1]:8443", "tauri://localhost"],
)
def test_an_origin_as_browsers_send_it_is_taken(origin: str) -> None:
    assert Settings(cors_origins=origin).cors_origins == (origin,)  # type: ignore[arg-type]


def test_connections_are_kept_longer_than_by_the_usual_proxies() -> None:
    assert Settings().keep_alive_s > 120  # Caddy's, the longest but for Google's


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIOLA_PORT", "9000")
    monkeypatch.setenv("VIOLA_MODELS_DIR", "/srv/models")
    monkeypatch.setenv("VIOLA_API_KEYS", "first, second,")
    monkeypatch.setenv("VIOLA_API_KEYS_FILE", "/run/secrets/keys")
    monkeypatch.setenv("VIOLA_ACCESS_LOG", "false")
    monkeypatch.setenv("VIOLA_ROOT_PATH", "/sounds/viola")
    settings = Settings()
    assert settings.port == 9000
    assert settings.models_dir == Path("/srv/models")
    assert settings.api_keys == ("first", "second")
    assert settings.api_keys_file == Path("/run/secrets/keys")
    assert settings.access_log is False
    assert settings.root_path == "/sounds/viola"


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIOLA_PORT", "")
    assert Settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VIOLA_PORT", "70000"),
        ("VIOLA_DEVICE", "gpu"),
        ("VIOLA_MAX_AUDIO_S", "inf"),
        ("VIOLA_DEADLINE_S", "0"),
        ("VIOLA_MAX_BATCH_ITEMS", "many"),
        ("VIOLA_ROOT_PATH", "viola"),
        ("VIOLA_ROOT_PATH", "/viola/"),
        ("VIOLA_ROOT_PATH", "/a b"),
        ("VIOLA_OTEL", "perhaps"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_variables_that_are_no_settings_are_found() -> None:
    environment = {"VIOLA_PORT": "1", "viola_host": "x", "VIOLA_PROT": "1", "HOME": "/"}
    assert unknown_variables(environment) == ["VIOLA_PROT"]


def test_settings_are_frozen_and_hide_the_keys() -> None:
    settings = Settings(api_keys=("secret",))
    with pytest.raises(ValidationError):
        settings.port = 1
    assert "secret" not in repr(settings)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_page_in_docs_is_that_of_the_class() -> None:
    assert DOCS.read_text(encoding="utf-8") == settings_page(), "run `python -m service.settings`"


def test_keys_that_are_none_do_not_open_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIOLA_API_KEYS", " , ")
    with pytest.raises(ValidationError, match="nothing but commas"):
        Settings()
    monkeypatch.setenv("VIOLA_API_KEYS", "")  # an unset variable that compose passes on
    assert Settings().api_keys == ()
