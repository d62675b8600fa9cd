"""LitServe: decoding, the batch and the answer in its inference processes, one after the other.

LITSERVE_WORKERS   inference processes: `workers_per_device`, "for CPU, set to the number of cores"
LITSERVE_BATCH     max_batch_size; 1 turns batching off
"""

import os
import sys
from collections.abc import Sequence

import litserve
from fastapi import Request, Response

from benchmarks.peers.work import Array, Work, json_of, port_from

BATCH_TIMEOUT_S = 0.005  # with 0, its default, the collecting loop spins and takes a whole core


class EmbedAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.work = Work()

    def decode_request(self, request: Request) -> Array:
        """Of a multipart upload, `request` is here what Starlette's request.form() gave."""
        return self.work.logmel(request["file"].file.read())

    def batch(self, inputs: Sequence[Array]) -> list[Array]:
        return list(inputs)

    def predict(self, x: list[Array] | Array) -> list[Array] | Array:
        return self.work.embed(x) if isinstance(x, list) else self.work.embed([x])[0]

    def unbatch(self, output: list[Array]) -> list[Array]:
        return output

    def encode_response(self, output: Array) -> Response:
        return Response(json_of(output), media_type="application/json")


def main() -> None:
    batch = int(os.environ.get("LITSERVE_BATCH", "32"))
    api = EmbedAPI(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT_S if batch > 1 else 0, api_path="/embed")
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(os.environ.get("LITSERVE_WORKERS", "1")),
        fast_queue=os.environ.get("LITSERVE_FAST_QUEUE") == "1",
    )
    server.run(
        host="127.0.0.1",
        port=port_from(sys.argv),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
