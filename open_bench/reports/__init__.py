"""One self-contained HTML page of a results folder: its boards, tuning, generalization, meta-training, provenance."""
