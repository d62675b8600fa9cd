"""`python -m service [--root-path PREFIX]` serves; `python -m service embed FILE|DIR ... --out OUT` embeds
without a server, `python -m service classify FILE|DIR ... --out OUT` gives tags, `python -m service add-head
MODEL FILE` puts a head that was taught into a model folder."""

import errno
import os
import sys
from typing import TYPE_CHECKING

from service.process import signals
from service.process.allocator import keep_freed_arrays

if TYPE_CHECKING:
    from service.settings import Settings

CANNOT_SERVE = 2


def main(argv: list[str]) -> int:
    """`argv`: what follows `python -m service`. Returns the exit code."""
    if argv[:1] in (["embed"], ["classify"]):
        return _without_http(*argv)
    if argv[:1] == ["add-head"]:
        from service.teaching.add_head import main as add_head

        return add_head(argv[1:])
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


def _without_http(name: str, *argv: str) -> int:
    keep_freed_arrays()
    try:
        from service.bulk.classify import CLASSIFY
        from service.bulk.embed import EMBED

        return (CLASSIFY if name == CLASSIFY.name else EMBED).main(argv)
    except KeyboardInterrupt:  # while the imports still ran
        return 130


def serve() -> int:
    """Serve until a signal comes."""
    signals.end_at_once()  # the imports from here on may take seconds
    keep_freed_arrays()
    settings = _settings()
    return CANNOT_SERVE if settings is None else _run(settings)


def _settings() -> "Settings | None":
    """The settings; None, and a sentence on stderr, where they cannot be served with."""
    from pydantic import ValidationError

    from service.http import tracing
    from service.http.api_keys import Access, ApiKeysFileError
    from service.settings import PREFIX, Settings, unknown_variables

    for name in unknown_variables(os.environ):
        if "KEY" in name.upper():  # passed over like others, it would leave the server open
            print(f"{name} is no setting; the keys are in {PREFIX}API_KEYS or a file", file=sys.stderr)
            return None
    try:
        settings = Settings()
        Access.from_settings(settings)
    except ValidationError as error:
        for each in error.errors():
            name = ".".join(str(part) for part in each["loc"]).removeprefix(PREFIX.lower()).upper()
            print(f"{PREFIX}{name}: {each['msg']} (it is {each['input']!r})", file=sys.stderr)
        return None
    except ApiKeysFileError as error:
        print(f"{PREFIX}{error.kind}_KEYS_FILE: {error}", file=sys.stderr)
        return None
    if settings.otel and not tracing.is_installed():
        print(f"{PREFIX}OTEL: OpenTelemetry is missing; `pip install .[otel]` brings it", file=sys.stderr)
        return None
    return settings


def _run(settings: "Settings") -> int:
    """uvicorn until a signal comes, in one process or several."""
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE

    from service.http.websocket import OPTIONS
    from service.process.logs import configuration
    from service.process.serving import Server, bound_socket
    from service.process.supervisor import Supervisor
    from service.process.workers import TemporaryFolderError, metrics_folder

    finish_s = int(settings.deadline_s) + 5
    config = uvicorn.Config(
        # By name, because worker processes import it for themselves.
        "service.http.app:app_from_environment",
        factory=True,
        workers=settings.workers,
        log_config=configuration(settings.log_format),
        http="service.http.drain:DrainingProtocol",
        loop="service.process.balancing:Loop",
        access_log=False,
        **OPTIONS,
        lifespan="on",  # or an error in it would pass for an application that has none
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=finish_s,
    )
    try:
        sock = bound_socket(settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.EADDRINUSE:
            reason += "; VIOLA_PORT takes another"
        print(f"VIOLA_HOST={settings.host} VIOLA_PORT={settings.port}: {reason}", file=sys.stderr)
        return STARTUP_FAILURE
    if settings.workers == 1:
        with metrics_folder(1):
            Server(config).run([sock])
        return 0
    supervisor = Supervisor(config, [sock], end_s=settings.drain_s + finish_s + 10)
    try:
        with metrics_folder(settings.workers) as folder:
            assert folder  # several workers have one
            return supervisor.run(folder)
    except TemporaryFolderError as error:
        print(error, file=sys.stderr)
        return CANNOT_SERVE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
