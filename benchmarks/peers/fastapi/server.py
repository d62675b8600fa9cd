"""The server that one writes in an afternoon: FastAPI and onnxruntime, one clip per call, no batches.

A plain `def` handler, which FastAPI runs in its thread pool, and the answer by orjson past FastAPI's own
encoder, as its page on performance of responses tells. onnxruntime's sessions may be run by many threads.
"""

import sys

import uvicorn
from fastapi import FastAPI, Response, UploadFile

from benchmarks.peers.work import Work, json_of, port_from

app = FastAPI()
work = Work()


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/embed")
def embed(file: UploadFile) -> Response:
    vector = work.embed([work.logmel(file.file.read())])[0]
    return Response(json_of(vector), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port_from(sys.argv), access_log=False)
