"""Search for the best sub-network of a trained network: widths, depth, kernel sizes and input size."""
