"""The gridworlds of Oh et al. 2020 (arXiv 2007.08794)."""
