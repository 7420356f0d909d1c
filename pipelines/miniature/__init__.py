"""The paper in miniature: a world in which all is known, models trained on it, and a study of each claim."""
