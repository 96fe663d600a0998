"""The settings: dataclasses with ranges and help, and how Hydra composes them."""
