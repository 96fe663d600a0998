"""Networks as graphs of operators: tracing them, reading patterns, rewriting."""
