"""xetserve serve."""
