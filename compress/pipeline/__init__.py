"""The whole flow: stages, one after the other, taken as they are or run, saved and measured."""
