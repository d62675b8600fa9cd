"""docker-compose.yml against the server that it runs: what reaches the container, and who reaches what.

The file is read as YAML everywhere. What Docker Compose makes of it (`docker compose config`, which needs no
engine) is looked at where there is a Compose; no test starts a container.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from service.http.api_keys import ApiKeys
from service.http.app import VERSION
from service.settings import PREFIX, Settings

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "deploy/compose.gpu.yml")
OLDEST = (2, 24)  # env_file with `required`
SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}

# Not handed to the container as the host's .env has them, and why:
OF_THE_CONTAINER = {
    "VIOLA_HOST": "the container's own address; what is published is VIOLA_PORT",
    "VIOLA_PORT": "the host's port; in the container it is 8000, which the image's health check asks",
    "VIOLA_MODELS_DIR": "the host's folder, mounted as /app/models",
}
OTHER_DEFAULT = {"VIOLA_DEVICE", "VIOLA_LOG_FORMAT"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY", re.IGNORECASE)

# Of every setting something that is not its default, and valid.
UNUSUAL = {
    "VIOLA_HOST": "127.0.0.1",
    "VIOLA_PORT": "9123",
    "VIOLA_MODELS_DIR": "/srv/models",
    "VIOLA_DEVICE": "auto",
    "VIOLA_PRECISION": "float32",
    "VIOLA_LOG_FORMAT": "text",
    "VIOLA_OTEL": "true",
    "VIOLA_ACCESS_LOG": "false",
    "VIOLA_ROOT_PATH": "/viola",
    "VIOLA_API_KEYS_FILE": "keys/api_keys",
    "VIOLA_CORS_ORIGINS": "https://example.org",
}


def unusual(name: str) -> str:
    return UNUSUAL.get(name, "7")


def services(file: str = FILES[0]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]
    return found


@cache
def compose() -> list[str] | None:
    """Docker Compose, as a plugin or by itself, where it is there and new enough."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            told = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            version = re.match(r"v?(\d+)\.(\d+)", told.stdout)
            if told.returncode == 0 and version and tuple(map(int, version.groups())) >= OLDEST:
                return command
    return None


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files of a checkout that Compose reads, and no .env."""
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def configured(project: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """What Compose makes of the project's files, its .env and the shell's variables."""
    command = compose()
    if command is None:
        pytest.skip("there is no Docker Compose 2.24 or newer")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | variables
    command = [*command, *arguments, "config", "--format", "json"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def environment_of(configuration: dict[str, Any]) -> dict[str, str]:
    """What the server's process finds; a name without a value is left out when the container is made."""
    variables = configuration["services"]["viola"]["environment"]
    return {name: value for name, value in variables.items() if value is not None}


def interpolated() -> Iterator[tuple[str, str]]:
    """(variable, default) of every ${…} of both files."""
    for file in FILES:
        text = re.sub(r"(^|\s)#.*", "", (ROOT / file).read_text(), flags=re.MULTILINE)
        yield from re.findall(r"\$\{(\w+):?-?([^}]*)\}", text)


def test_every_setting_is_passed_on_or_named_as_not() -> None:
    listed = services()["viola"]["environment"]
    assert set(listed) == SETTINGS, "a setting without its line under `environment` of docker-compose.yml"
    passed_on = {name for name, value in listed.items() if value is None}
    assert passed_on == SETTINGS - set(OF_THE_CONTAINER) - OTHER_DEFAULT
    for name in OTHER_DEFAULT:
        assert re.fullmatch(rf"\$\{{{name}:-\w+\}}", listed[name])


@pytest.mark.parametrize("where", ["in .env", "in the shell"])
def test_the_container_gets_what_was_set(where: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: unusual(name) for name in SETTINGS}
    if where == "in .env":
        (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in wanted.items()))
        found = configured(project)
    else:
        found = configured(project, **wanted)
    got = environment_of(found)
    assert set(got) == SETTINGS
    assert {name for name in SETTINGS if got[name] != wanted[name]} == set(OF_THE_CONTAINER)
    viola = found["services"]["viola"]
    assert viola["ports"][0]["published"] == wanted["VIOLA_PORT"]
    assert str(viola["ports"][0]["target"]) == got["VIOLA_PORT"]
    (models,) = [each for each in viola["volumes"] if each["target"] == got["VIOLA_MODELS_DIR"]]
    assert models["source"] == wanted["VIOLA_MODELS_DIR"]
    for name, value in got.items():
        monkeypatch.setenv(name, value)
    assert Settings().api_keys == ("7",)  # and every value is one that the server takes


def test_without_env_the_server_has_its_own_defaults(project: Path) -> None:
    assert set(environment_of(configured(project))) == set(OF_THE_CONTAINER) | OTHER_DEFAULT


def test_what_is_no_setting_reaches_the_server_from_env_as_well(project: Path) -> None:
    """OpenTelemetry's variables are of use, and of a misspelt name the server can tell."""
    (project / ".env").write_text("OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318\nVIOLA_API_KEY=secret\n")
    got = environment_of(configured(project))
    assert got["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert serve(project, got) == (2, "VIOLA_API_KEY is no setting")


@pytest.mark.parametrize("file", ["keys/api_keys", "/home/me/keys"])
def test_a_file_of_keys_that_cannot_be_read_opens_no_server(file: str, project: Path) -> None:
    (project / ".env").write_text(f"VIOLA_API_KEYS_FILE={file}\n")
    got = environment_of(configured(project))
    assert serve(project, got) == (2, f"VIOLA_API_KEYS_FILE: the keys in {file} cannot be read")


def test_a_file_in_keys_is_the_same_in_the_container(project: Path) -> None:
    (project / ".env").write_text("VIOLA_API_KEYS_FILE=keys/api_keys\n")
    found = configured(project)
    file = Path(environment_of(found)["VIOLA_API_KEYS_FILE"])
    (mount,) = [each for each in found["services"]["viola"]["volumes"] if each["target"].endswith("keys")]
    workdir = re.findall(r"^WORKDIR (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    assert mount["target"] == str(workdir / file.parent)  # the folder: a single file would not rotate
    assert mount["source"] == str(project / file.parent)
    assert mount["read_only"]
    (project / "keys").mkdir()
    (project / file).write_text("first\n")
    keys = ApiKeys((), project / file)
    assert keys.is_valid(b"first")
    assert not keys.is_valid(b"")


def serve(folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code of a server with this environment, and the beginning of its complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, re.split(r";|: Permission|: No such", done.stderr)[0]


def test_nothing_that_is_secret_has_a_default() -> None:
    for name, default in interpolated():
        assert not (SECRET.search(name) and default), f"{name} has the default {default}"
    for file in FILES:
        for service in services(file).values():
            for name, value in service.get("environment", {}).items():
                assert not SECRET.search(name) or value is None, f"{name} is written into {file}"


def test_nobody_can_log_in_to_grafana_and_only_viola_is_published() -> None:
    found = services()
    grafana = found["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert grafana["GF_AUTH_BASIC_ENABLED"] == "false"
    published = {name: port for name, service in found.items() for port in service["ports"]}
    assert published.pop("viola") == "${VIOLA_PORT:-8000}:8000"
    assert all(port.startswith("127.0.0.1:") for port in published.values())


def test_the_logs_of_every_container_are_bounded() -> None:
    for service in services().values():
        assert service["logging"]["driver"] == "json-file"
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_it_starts_on_a_host_with_one_core() -> None:
    """Docker refuses to start what may take more cores than there are."""
    for file in FILES:
        for name, service in services(file).items():
            cpus = re.sub(
                r"\$\{LIMIT_CPUS:-([^}]*)\}", r"\1", service["deploy"]["resources"]["limits"]["cpus"]
            )
            assert float(cpus) <= 1, f"{name} of {file}"


def test_down_ps_and_logs_mean_what_up_started() -> None:
    """On a CPU or a GPU it is one service, and none hides behind a profile that must be named each time."""
    assert set(services(FILES[1])) == {"viola"}
    assert not any("profiles" in service for file in FILES for service in services(file).values())


def test_the_gpu_is_laid_over_the_cpu(project: Path) -> None:
    cpu = configured(project)["services"]["viola"]
    gpu = configured(project, COMPOSE_FILE=":".join(FILES))["services"]["viola"]
    assert (cpu["build"]["target"], gpu["build"]["target"]) == ("cpu", "gpu")
    assert (cpu["environment"]["VIOLA_DEVICE"], gpu["environment"]["VIOLA_DEVICE"]) == ("cpu", "cuda")
    assert "reservations" not in cpu["deploy"]["resources"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    for name in ("ports", "volumes", "read_only", "cap_drop", "stop_grace_period", "logging"):
        assert cpu[name] == gpu[name]


def test_the_images_are_those_of_the_dockerfile_and_this_version() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for file, target in zip(FILES, ("cpu", "gpu"), strict=True):
        viola = services(file)["viola"]
        assert viola["build"]["target"] == target
        assert target in targets
        assert viola["image"] == f"viola:{VERSION}-{target}"


def test_a_container_is_given_time_to_drain() -> None:
    (grace_s,) = re.findall(r":-(\d+)s\}", services()["viola"]["stop_grace_period"])
    settings = Settings()
    assert int(grace_s) > settings.drain_s + settings.deadline_s + 5


def test_env_is_not_in_git_and_neither_are_keys() -> None:
    ask = ["git", "check-ignore", "--quiet", "--no-index"]
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no checkout of git")
    for path in (".env", "keys/api_keys"):
        assert subprocess.run([*ask, path], cwd=ROOT).returncode == 0, path
    assert not subprocess.run(["git", "ls-files", ".env"], cwd=ROOT, capture_output=True, text=True).stdout
    image = (ROOT / ".dockerignore").read_text().splitlines()
    assert image[1] == "*"
    assert not {"!.env", "!keys"} & set(image)


def example(*, taken: bool) -> str:
    """.env.example, or what it is with every # before a variable taken away."""
    text = (ROOT / ".env.example").read_text()
    return re.sub(r"^#(?=[A-Z_]+=)", "", text, flags=re.MULTILINE) if taken else text


def test_the_example_is_the_default_and_names_what_there_is(project: Path) -> None:
    named = set(re.findall(r"^([A-Z_]+)=", example(taken=True), re.MULTILINE))
    used = {name for name, _ in interpolated()}
    assert named <= SETTINGS | used | {"COMPOSE_FILE"}
    assert used <= named | SETTINGS
    assert not re.findall(r"^[A-Z_]+=", example(taken=False), re.MULTILINE)
    assert all(
        (ROOT / file).is_file()
        for file in re.findall(r"COMPOSE_FILE=(.*)", example(taken=True))[0].split(":")
    )
    without = configured(project)
    (project / ".env").write_text(example(taken=False))
    assert configured(project) == without


def test_the_example_can_be_taken_as_a_whole(project: Path) -> None:
    (project / ".env").write_text(example(taken=True))
    found = configured(project)
    assert environment_of(found)["VIOLA_DEVICE"] == "cuda"
    assert environment_of(found)["VIOLA_API_KEYS_FILE"] == "keys/api_keys"
