"""The command lines `soundcap` and `flowley`."""
