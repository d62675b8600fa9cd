"""MLServer: a custom runtime with adaptive batching, and a custom handler for the upload.

The V2 protocol knows only JSON tensors over HTTP, so that an upload needs `custom_handler`; it calls
`predict`, which MLServer has wrapped with its batching. Requests that meet in a batch are joined as Python
lists: each holds one array here, so that no numbers are copied.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from fastapi import Request, Response
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.context import model_context
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput

from benchmarks.harness.servers import free_port
from benchmarks.peers.work import CORES, MAX_BATCH, Work, json_of, port_from

BATCH_TIME_S = 0.005


class Embed(MLModel):
    async def load(self) -> bool:
        self.work = Work()
        self.decoding = ThreadPoolExecutor(CORES)
        self.inference = ThreadPoolExecutor(1)
        return True

    @custom_handler(rest_path="/embed")
    async def embed(self, request: Request) -> Response:
        form = await request.form()
        clip = await form["file"].read()  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        logmel = await loop.run_in_executor(self.decoding, self.work.logmel, clip)
        one = RequestInput(name="logmel", datatype="FP32", shape=[1, *logmel.shape], data=[logmel])
        with model_context(self.settings):  # the batcher's metrics ask for it
            answer = await self.predict(InferenceRequest(inputs=[one]))
        return Response(json_of(answer.outputs[0].data.root), media_type="application/json")

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        logmels = payload.inputs[0].data.root
        vectors = await asyncio.get_running_loop().run_in_executor(self.inference, self.work.embed, logmels)
        flat = np.concatenate(vectors)  # MLServer cuts it into as many equal parts as there were requests
        shape = [len(vectors), len(vectors[0])]
        output = ResponseOutput(name="embedding", datatype="FP32", shape=shape, data=flat)
        return InferenceResponse(model_name=self.name, outputs=[output])


def main() -> None:
    settings = Settings(
        debug=False,  # access log
        host="127.0.0.1",
        http_port=port_from(sys.argv),
        grpc_port=free_port(),
        metrics_port=free_port(),
        parallel_workers=0,  # a second process would get every clip through a pipe
        gzip_enabled=False,
    )
    model = ModelSettings(
        name="embed", implementation=Embed, max_batch_size=MAX_BATCH, max_batch_time=BATCH_TIME_S
    )
    asyncio.run(MLServer(settings).start([model]))


if __name__ == "__main__":
    main()
