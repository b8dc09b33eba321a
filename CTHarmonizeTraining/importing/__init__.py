"""Measured CT from public and own collections: what each layout looks like, and what of it belongs together."""
