"""Shipped models of the miniature: ordinary checkpoints in the real architectures, trained from scratch."""
