"""Commands besides a run: each module has a `main`."""
