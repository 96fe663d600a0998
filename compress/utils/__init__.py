"""Helpers that know nothing of networks: files, errors, signals, facts of the CPU."""
