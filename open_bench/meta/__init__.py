"""Meta-training: θ of a learned optimizer evolved with whole lifetimes of the harness as fitness."""
