"""Checkpoints in the real architectures with a few random weights."""
