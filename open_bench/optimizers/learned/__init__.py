"""Learned optimizers, each with its θ and the readers of its published files."""
