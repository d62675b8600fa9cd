"""How fast, and what breaks it: every module here is a command, its parts are in the rooms; see README.md."""

import service  # noqa: F401 - it pins the threads of BLAS, which works only before NumPy is imported
