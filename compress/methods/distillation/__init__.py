"""Losses by which a student learns from its teacher."""
