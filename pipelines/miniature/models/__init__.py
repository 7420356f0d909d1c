"""The models of the miniature: ordinary checkpoints in the real architectures, trained here from scratch."""
