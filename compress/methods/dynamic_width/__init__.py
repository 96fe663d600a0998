"""One network at several widths, of which an image gets the narrowest that is sure of it."""
