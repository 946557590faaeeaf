"""Cells: their identity, their place on disk, and running the missing ones."""
