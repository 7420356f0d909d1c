"""The command line `flowley`: the video-to-audio model by itself, in one process, without Ray or a store."""
