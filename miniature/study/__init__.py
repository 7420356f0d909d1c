"""Study of the paper's claims: each a table of settings, one cell (claim, setting, seed) one JSON result."""
