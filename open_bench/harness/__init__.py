"""The one training harness: lifetimes, and many of them in parallel."""
