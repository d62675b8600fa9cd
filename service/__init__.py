"""The server: sound in over HTTP, embeddings and tags out. It never imports torch.

Importing this package pins BLAS and OpenMP to one thread, which works only before NumPy is imported:
the server's parallelism is its decode pool and its inference thread, and a BLAS that starts one thread
per core on top of them was measured to halve the throughput of a two-core machine.

It also tells onnxruntime, before it is loaded, to keep to itself: without ORT_DISABLE_TELEMETRY its Linux
builds (1.31, at least) report to their maker what they run.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
