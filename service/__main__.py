"""`python -m service [--root-path PREFIX]` serves; `python -m service embed FILE|DIR ... --out OUT` embeds
without a server."""

import contextlib
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from pydantic import ValidationError

if TYPE_CHECKING:
    from service.settings import Settings

CANNOT_SERVE = 2


def main(argv: list[str]) -> int:
    """`argv`: what follows `python -m service`. Returns the exit code."""
    if argv[:1] == ["embed"]:
        try:
            from service.embed_cli import main as embed

            return embed(argv[1:])
        except KeyboardInterrupt:  # while the imports still ran
            return 130
    if argv[:1] == ["--root-path"] and len(argv) == 2:
        os.environ["VIOLA_ROOT_PATH"] = argv[1]  # the worker processes read it, too
        return serve()
    if argv:
        known = argv[0] in ("-h", "--help")
        print(
            __doc__,
            "Settings are environment variables: docs/settings.md.",
            file=sys.stdout if known else sys.stderr,
        )
        return 0 if known else 2
    return serve()


def serve() -> int:
    """Serve until a signal comes."""
    from service.processes import NoTemporaryFolder, metrics_folder

    settings = _settings()
    if settings is None:
        return CANNOT_SERVE
    # When uvicorn has shut down it raises the signal again, for the handler that was there before: this one,
    # so that a server that was told to stop ends with exit code 0.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with metrics_folder(settings.workers):
            return _run(settings)
    except NoTemporaryFolder as error:
        print(error, file=sys.stderr)
        return CANNOT_SERVE


def _settings() -> "Settings | None":
    """The settings; None, and a sentence on stderr, where they cannot be served with."""
    from service import tracing
    from service.keys import Keys, KeysFileError
    from service.settings import PREFIX, Settings

    try:
        settings = Settings()
        Keys(settings.api_keys, settings.api_keys_file)
    except ValidationError as error:
        for each in error.errors():
            name = ".".join(str(part) for part in each["loc"]).removeprefix(PREFIX.lower()).upper()
            print(f"{PREFIX}{name}: {each['msg']} (it is {each['input']!r})", file=sys.stderr)
        return None
    except KeysFileError as error:
        print(f"{PREFIX}API_KEYS_FILE: {error}", file=sys.stderr)
        return None
    if settings.otel and not tracing.is_installed():
        print(f"{PREFIX}OTEL: OpenTelemetry is missing; `pip install .[otel]` brings it", file=sys.stderr)
        return None
    return settings


def _run(settings: "Settings") -> int:
    """uvicorn until a signal comes, in one process or several."""
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE

    from service.logs import configuration
    from service.processes import Supervisor

    config = uvicorn.Config(
        # By name, because worker processes import it for themselves.
        "service.app:app_from_environment",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=configuration(settings.log_format),
        http="service.drain:DrainingProtocol",
        loop="service.balance:Loop" if settings.workers > 1 else "auto",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(settings.deadline_s) + 5,
        timeout_worker_healthcheck=30,  # a busy machine may take long to start a process
    )
    if settings.workers > 1:
        supervisor = Supervisor(config, sockets=[config.bind_socket()])
        supervisor.run()
        return STARTUP_FAILURE if supervisor.has_failed else 0
    if _is_taken(settings.host, settings.port):
        return STARTUP_FAILURE
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # SIGINT, which uvicorn raises again when it is done
        server.run()
    return 0 if server.started else STARTUP_FAILURE


def _is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there, which is said now: uvicorn finds out after the models are loaded. All
    other obstacles it finds, too."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as uvicorn's
                try:
                    probe.bind(address)
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        print(f"port {port} of {host}: address already in use", file=sys.stderr)
                        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
