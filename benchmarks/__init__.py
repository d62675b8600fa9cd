"""How fast, measured: `python -m benchmarks.overhead | load | training | report`; see README.md here."""

import service  # noqa: F401 - it pins the threads of BLAS, which works only before NumPy is imported
