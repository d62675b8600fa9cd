"""`python -m service.healthcheck`: exit code 0 when the server on this machine is ready, 1 when not.

For a container's health check: the standard library alone, so that it takes a twentieth of a second.
"""

import os
import sys
from urllib.error import URLError
from urllib.request import urlopen


def main() -> int:
    port = os.environ.get("VIOLA_PORT") or "8000"
    prefix = os.environ.get("VIOLA_ROOT_PATH", "").rstrip("/")
    try:
        with urlopen(f"http://127.0.0.1:{port}{prefix}/health/ready", timeout=2):
            return 0
    except (URLError, OSError) as error:
        sys.stderr.write(f"not ready: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
