"""A training run or published weights in, a model folder out, verified before it appears."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would compete with torch's
