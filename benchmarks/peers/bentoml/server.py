"""BentoML: one service whose batchable endpoint takes the uploads, as its page on adaptive batching tells.

    bentoml serve benchmarks.peers.bentoml.server:Embed --port PORT

BentoML stores each upload in a file, learns how long batches take, and calls the method with as many files as
it thinks worth waiting for. The documented form with a second service (one that decodes, in front of one that
batches) costs another process and another HTTP request for each clip, and is slower here.
"""

from pathlib import Path

import bentoml

from benchmarks.peers.work import MAX_BATCH, Work


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Embed:
    def __init__(self) -> None:
        self.work = Work()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def embed(self, file: list[Path]) -> list[list[float]]:
        """A multipart upload is a batch of one here; its answer is a list of one vector."""
        logmels = [self.work.logmel(each.read_bytes()) for each in file]
        return [vector.tolist() for vector in self.work.embed(logmels)]
