"""Command implementations: thin single-process executors of the steps, without Ray."""
