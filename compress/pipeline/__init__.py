"""The whole flow: runs the stages one after another, or reuses them; saves and measures each."""
