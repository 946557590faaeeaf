"""What people look at: the leaderboard and its figures. Reads scores only; never imports JAX."""
