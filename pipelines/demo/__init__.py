"""Material for `make demo`: a small corpus of films whose sounds belong to what they show."""
