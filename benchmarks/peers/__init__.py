"""Other servers of the same model, to be measured beside viola; README.md tells their settings and why.

Each lies in a folder of its own with its requirements and runs in an environment of its own (install.py).
The sound is decoded, turned into a log-mel and run through the graph by viola's own code (work.py), so that
only the servers differ.
"""
