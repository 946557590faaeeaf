"""Studies of how optimizers carry over to what they were not trained or tuned on."""
