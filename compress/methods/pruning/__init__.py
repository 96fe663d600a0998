"""The project's own pruning rules, over torch-pruning's dependency graph."""
