"""Files in, tables of embeddings or tags out, without HTTP. Knows inference and sound.

    embed    ─┬─► cli ─► inputs ─┬─► offline: here              ─┬─► resumable ─► one table
    classify ─┘                  ├─► server: one that is running ┴─► folder: a part per thousand files or so
                                 └─► ray: a cluster ───────────────► folder

`kinds` is what differs between the two; `table` and `tags` read and write what is kept.
"""
