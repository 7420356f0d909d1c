"""Publications: captions and models for a data hub, and captions for other architectures."""
