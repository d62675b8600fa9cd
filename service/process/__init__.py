"""The processes of one machine, their connections, logs and counts. Knows no sound, no model, no HTTP.

    signals          from the first instruction on
    supervisor ─┬─► worker 0    serving: uvicorn until a signal comes    balancing: who takes a connection
                └─► worker 1    workers: the folder and slots they share broadcast: a request to all
                                metrics: one page of all counts, kept in files (counts_file)

`logs` writes the lines of each, as text or JSON; `files` and `send_queue` ask the system for what only some
systems have.
"""
