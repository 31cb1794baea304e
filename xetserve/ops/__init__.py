"""How the process lives: signals, workers, logs."""
