"""Metrics: counters in shared memory, their catalogue and their text form."""
