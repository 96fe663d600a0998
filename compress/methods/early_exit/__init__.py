"""Exits of a network, for images that its first layers are sure of already."""
