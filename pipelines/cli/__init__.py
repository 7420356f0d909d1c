"""Command-line interfaces `soundcap` and `flowley`."""
