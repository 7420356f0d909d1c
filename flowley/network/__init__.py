"""The velocity networks: Flowley (paper, section 2.1 and 2.2) and its peer MMAudio."""
