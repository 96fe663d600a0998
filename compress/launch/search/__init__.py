"""Search on a budget: Optuna proposes settings, runs are judged by their figures, the best is left as a recipe."""
