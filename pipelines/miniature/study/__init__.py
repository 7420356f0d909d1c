"""The study: each claim of the paper as cells (claim, setting, seed), one JSON result for each."""
