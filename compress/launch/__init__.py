"""The runs of a command as Hydra starts them: one here, or many in processes that a launcher makes."""
