"""Compresses a trained image classifier into an int8 file that runs fast where it is deployed."""

__version__ = "0.1.0"
