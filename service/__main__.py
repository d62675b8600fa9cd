"""`python -m service` serves; `python -m service embed FILE|DIR ... --out OUT` embeds without a server."""

import signal
import sys

from pydantic import ValidationError


def main(argv: list[str]) -> int:
    """`argv`: what follows `python -m service`. Returns the exit code."""
    if argv[:1] == ["embed"]:
        try:
            from service.embed_cli import main as embed

            return embed(argv[1:])
        except KeyboardInterrupt:  # while the imports still ran
            return 130
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
    import uvicorn

    from service.logs import configuration
    from service.settings import PREFIX, Settings

    try:
        settings = Settings()
    except ValidationError as error:
        for each in error.errors():
            name = ".".join(str(part) for part in each["loc"]).removeprefix(PREFIX.lower()).upper()
            print(f"{PREFIX}{name}: {each['msg']} (it is {each['input']!r})", file=sys.stderr)
        return 2
    # When uvicorn has shut down it raises the signal again, for the handler that was there before: this one,
    # so that a server that was told to stop ends with exit code 0.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    uvicorn.run(
        # By name, because worker processes import it for themselves.
        "service.app:app_from_environment",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=configuration(settings.log_format),
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(settings.deadline_s) + 5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
