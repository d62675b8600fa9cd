"""Encoded bytes in, log-mel out. Knows no model and no HTTP.

    bytes, file or path ─► audio: decode, mix, resample ─► waveform ─► logmel ─► (n_mels, frames) ─► picture

`pcm` gives raw samples the header that makes them a file. `picture` is for eyes, not for a model.
"""
