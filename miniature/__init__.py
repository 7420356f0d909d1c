"""The paper in miniature: a synthetic world with ground truth, models trained on it, and a study of each claim."""
