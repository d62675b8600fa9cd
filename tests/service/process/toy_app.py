"""For workers of a test: an application that answers with its process id, and does what files in TOY tell it.

refuse   its text is why the worker is not ready        hang   it never starts
fail     its lifespan raises                            die    its import ends the process with 7
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from service.process.serving import READINESS

FOLDER = Path(os.environ["TOY"])

if (FOLDER / "die").exists():
    os._exit(7)


refuse = FOLDER / "refuse"
WHY_NOT_READY = refuse.read_text() if refuse.exists() else None


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        body = str(os.getpid()).encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    assert (await receive())["type"] == "lifespan.startup"
    if (FOLDER / "hang").exists():
        await asyncio.sleep(600)
    if (FOLDER / "fail").exists():
        raise OSError("cannot start in a test")
    scope["state"][READINESS] = lambda: WHY_NOT_READY
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
