"""A world of small films: every sound has a cause, every cause is written down, and no stage reads it."""
