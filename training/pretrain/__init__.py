"""Sounds without labels in, a trained encoder out: recipe, data, augmentation, methods, the loop.

clips ─► sampler ─► log-mel ─► augmentations ─► method ─► run ─► checkpoint, log
"""
