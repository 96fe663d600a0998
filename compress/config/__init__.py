"""The settings: dataclasses with ranges and help, and their composition with Hydra."""
