"""The command line, the Python interface, sweeps and searches: whatever starts a run."""
