"""Meta-training: θ of a learned optimizer found with whole lifetimes of the harness as fitness."""
