"""From stored rows to scores: reference returns, normalisation, aggregates. Reads rows only; never imports JAX."""
