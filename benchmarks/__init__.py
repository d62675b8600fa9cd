"""How fast, measured: `python -m benchmarks.overhead | load | training | report`; see README.md here."""
