"""Lung nodules as a detector finds them: the downstream task of harmonization."""
