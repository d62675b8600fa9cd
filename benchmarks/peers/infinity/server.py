"""infinity: its own server and batching engine around our graph, without PyTorch.

infinity finds its engine by a checkpoint of transformers. Ours is an onnxruntime graph, so that the function
that selects the engine is replaced by one that returns `Encoder`, and nothing else: queue, threads, batches
and routes are infinity's.

    POST /embeddings   its own route: JSON with data URIs in, JSON or base64 out, decoded by infinity
    POST /embed        a multipart upload like everybody's, decoded in a thread, then the same engine

BATCH_DELAY_S: "best result: half the minimal expected time of inference", says infinity's BatchHandler; its
server never passes one and sleeps for 5 ms.
"""

import asyncio
import functools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import infinity_emb.engine
import uvicorn
from fastapi import Response, UploadFile
from infinity_emb import EngineArgs
from infinity_emb.inference import BatchHandler
from infinity_emb.infinity_server import create_server
from infinity_emb.transformer.abstract import BaseAudioEmbedModel

from benchmarks.peers.work import CORES, MAX_BATCH, Array, Work, json_of, port_from

MODEL = "viola"  # its name in requests to /embeddings
BATCH_DELAY_S = 0.002


class Encoder(BaseAudioEmbedModel):
    """Waveforms of infinity's own route, or log-mels of /embed -> vectors, in infinity's three threads."""

    sampling_rate = 16_000

    def __init__(self) -> None:
        self.work = Work()

    def encode_pre(self, sentences_or_audios: Sequence[Array]) -> list[Array]:
        return [each if each.ndim == 2 else self.work.logmel_of(each) for each in sentences_or_audios]

    def encode_core(self, features: Sequence[Array]) -> list[Array]:
        return self.work.embed(features)

    def encode_post(self, embedding: list[Array], skip_quanitzation: bool = True) -> list[Array]:
        return embedding

    def tokenize_lengths(self, sentences: Sequence[str]) -> list[int]:
        return list(map(len, sentences))


infinity_emb.engine.select_model = lambda engine_args: ([Encoder()], 0.004, 0.004)
infinity_emb.engine.BatchHandler = functools.partial(BatchHandler, batch_delay=BATCH_DELAY_S)

app = create_server(
    engine_args_list=[EngineArgs(model_name_or_path=MODEL, engine="debugengine", batch_size=MAX_BATCH)],
    url_prefix="",
)
decoding = ThreadPoolExecutor(CORES)


@app.post("/embed")
async def embed(file: UploadFile) -> Response:
    clip = await file.read()
    engine = app.engine_array[MODEL]
    logmel = await asyncio.get_running_loop().run_in_executor(decoding, engine_work().logmel, clip)
    vectors, _ = await engine.embed(sentences=[logmel])
    return Response(json_of(vectors[0]), media_type="application/json")


def engine_work() -> Work:
    work: Work = app.engine_array[MODEL]._model_replicas[0].work
    return work


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port_from(sys.argv), access_log=False, log_level="warning")
