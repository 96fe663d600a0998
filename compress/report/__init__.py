"""Pictures of what a run found: drawn from figures alone, never from a network."""
