"""Training of CTHarmonize models, without Slicer."""
