"""Bodies of the commands: thin executors of the steps, in one process, without Ray."""
