"""Process management: signals, workers, logs, and the interface to the service manager."""
