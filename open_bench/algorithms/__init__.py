"""How agents act and learn. Optimizers and policy losses arrive as values."""
