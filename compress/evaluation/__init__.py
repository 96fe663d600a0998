"""Measures a stage: accuracy, cost, and the speed and memory of its deployable file in the runtime that ships."""
