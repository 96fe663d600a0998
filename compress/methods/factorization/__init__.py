"""Factorization: replaces layers by products of smaller ones, and fits these to what the layers returned."""
