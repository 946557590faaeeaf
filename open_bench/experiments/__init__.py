"""Experiments: planned, run, stored, resumed."""
