"""`python -m service.healthcheck`: exit code 0 when the server on this machine is ready, 1 when not.

For a container's health check: the standard library alone, so that it takes a twentieth of a second.
"""

import os
import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

ANY = frozenset(
    {"", "0.0.0.0", "::"}
)  # a server that listens on all addresses is asked on this machine's own


def main() -> int:
    host = os.environ.get("VIOLA_HOST", "")
    host = "127.0.0.1" if host in ANY else f"[{host}]" if ":" in host else host
    port = os.environ.get("VIOLA_PORT") or "8000"
    prefix = os.environ.get("VIOLA_ROOT_PATH", "").rstrip("/")
    try:
        without_proxy = build_opener(ProxyHandler({}))
        with without_proxy.open(f"http://{host}:{port}{prefix}/health/ready", timeout=2):
            return 0
    except (URLError, OSError) as error:
        sys.stderr.write(f"not ready: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
