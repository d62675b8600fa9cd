"""What there is to be measured beside viola: how each server is started, and what it is sent.

The settings are told, with their reasons, in README.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import uploads
from benchmarks.harness.servers import ROOT, Server
from benchmarks.peers.install import python_of
from service.inference.threads import usable_cores

CORES = str(usable_cores()[0])
ONE_THREAD = {"PEER_THREADS": "1"}
THREAD_PINS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Peer:
    """One row of the table. package: whose version is told, of the folder's requirements.

    variant: tells servers of one folder apart that have other settings; command: behind `python`; path, body:
    see uploads.py; busy_at_rest: it uses the processor while nobody asks for anything, and is therefore
    measured with nobody but viola beside it.
    """

    name: str
    folder: str
    package: str
    variant: str = ""
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    ready: str = "/health"
    path: str = "/embed"
    body: uploads.Body = uploads.multipart
    busy_at_rest: bool = False

    def server(self, model: Path, precision: str) -> Server:
        """`precision`: float32 or int8. Rows of equal folder and variant share one server."""
        module = f"benchmarks.peers.{self.folder}.server"
        command = self.command or ("-m", module, "--port", "{port}")
        own = {
            "PYTHONPATH": str(ROOT),
            "PEER_MODEL": str(model.resolve()),
            "PEER_PRECISION": precision,
            "PEER_THREADS": CORES,
        }
        settings = own | THREAD_PINS | self.environment
        name = " ".join(filter(None, (self.folder, self.variant, precision)))
        return Server(name, (str(python_of(self.folder)), *command), settings, self.ready)


PEERS = (
    Peer("infinity", "infinity", "infinity_emb", environment={"DO_NOT_TRACK": "1"}),
    Peer(
        "infinity, its own route, data URI, base64",
        "infinity",
        "infinity_emb",
        environment={"DO_NOT_TRACK": "1"},
        path="/embeddings",
        body=uploads.data_uri,
    ),
    Peer("MLServer", "mlserver", "mlserver", ready="/v2/health/ready"),
    Peer(
        "BentoML",
        "bentoml",
        "bentoml",
        command=(
            *("-m", "bentoml", "serve", "benchmarks.peers.bentoml.server:Embed"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        environment={"BENTOML_DO_NOT_TRACK": "True"},
        ready="/readyz",
    ),
    Peer("FastAPI", "fastapi", "fastapi"),
    Peer("FastAPI, 1 thread a call", "fastapi", "fastapi", "1-thread", environment=ONE_THREAD),
    Peer("LitServe", "litserve", "litserve", busy_at_rest=True),
    Peer(
        "LitServe, 1 worker per core",
        "litserve",
        "litserve",
        "workers",
        environment=ONE_THREAD | {"LITSERVE_WORKERS": CORES},
        busy_at_rest=True,
    ),
    Peer(
        "Ray Serve",
        "ray",
        "ray",
        environment={
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",  # 5 s are too short for a busy machine
        },
        ready="/embed",
        busy_at_rest=True,
    ),
)
