"""Ray Serve: a proxy process, a replica process and `serve.batch` within it, as its page on batching tells.

Decoding goes to threads before the batch, so that it overlaps with inference; the batch itself runs in a
thread of its own, because it would otherwise block the replica's event loop.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.work import CORES, MAX_BATCH, Array, Work, json_of, port_from

BATCH_WAIT_S = 0.005


@serve.deployment(
    num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1}, logging_config=None
)
class Embed:
    def __init__(self) -> None:
        self.work = Work()
        self.decoding = ThreadPoolExecutor(CORES)
        self.inference = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def batch(self, logmels: list[Array]) -> Sequence[Array]:
        return await asyncio.get_running_loop().run_in_executor(self.inference, self.work.embed, logmels)

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":  # the proxy calls itself healthy long before there is a replica
            return Response("ready")
        form = await request.form()
        clip = await form["file"].read()  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        logmel = await loop.run_in_executor(self.decoding, self.work.logmel, clip)
        vector = await self.batch(logmel)
        return Response(json_of(vector), media_type="application/json")


def main() -> None:
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="warning")
    with contextlib.suppress(TimeoutError):  # after 60 s, of a busy machine; the proxy goes on starting
        serve.start(http_options={"host": "127.0.0.1", "port": port_from(sys.argv)})
    serve.run(
        Embed.bind(),  # type: ignore[attr-defined]
        route_prefix="/embed",
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
