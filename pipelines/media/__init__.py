"""Raw media in, clips in which frame index is time out: probe, normalise, read back, mux."""
