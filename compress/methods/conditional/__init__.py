"""Networks that do less for an image that an early result is sure of: their selection, training and thresholds."""
