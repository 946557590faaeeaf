"""Tuning: every optimizer gets the same number of trials, seeds and env steps."""
