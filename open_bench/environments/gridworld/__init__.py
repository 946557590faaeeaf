"""The gridworld of Oh et al. 2020 (arXiv 2007.08794): mazes, distributions, levels, environment, optimal returns."""
