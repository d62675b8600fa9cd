"""Labelled sounds and an encoder in; linear heads, and how good they are, out.

labelled ─► embeddings ─► linear ─► fit_head, evaluate, layers ─► pictures
"""
