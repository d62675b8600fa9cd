"""Encoded clips in, embeddings and scores out. Knows sound; knows no HTTP.

    clip ─► embedder: log-mel ─► windows ─► batcher ─► model ─► pooled: the embedding ─► heads ─► scores

    model folder ─► card, tensors, heads ─► model: a session, with a self-test ─► registry: all served

`threads` plans how many threads there are, and `thread_pool` starts them.
"""
