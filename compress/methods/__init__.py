"""What stages are made of: pruning, distillation and quantization, usable alone."""
