"""From stored rows to scores, tables and figures. Reads rows only; never imports JAX."""
