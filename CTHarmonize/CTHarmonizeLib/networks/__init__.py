"""Torch modules, one file per architecture."""
