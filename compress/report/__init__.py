"""The report of a run: pages and charts from its files, never from a network."""
