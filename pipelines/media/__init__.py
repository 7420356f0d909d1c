"""Media processing: probes, normalises, reads and muxes clips in which frame index is time."""
