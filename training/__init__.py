"""Pre-training, distillation, linear heads and evaluation: audio in, checkpoints, heads and results out."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would compete with torch's

import torch

# `service` pins OpenMP to one thread when it is imported, which is right for the server and would leave
# training on one core: what torch found before that is kept.
torch.set_num_threads(torch.get_num_threads())
