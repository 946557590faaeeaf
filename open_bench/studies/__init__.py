"""Studies that are more than a table of optimizers and environments."""
