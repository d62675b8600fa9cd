"""A training run or a published file of weights in, an encoder ready to export out."""
