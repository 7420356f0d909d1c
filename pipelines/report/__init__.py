"""HTML report of a store, and publication of its captions."""
