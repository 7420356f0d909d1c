"""Training of a velocity network on feature files (paper, section 2.1)."""
