"""Status for operators: health, readiness, metrics and the status page."""
