"""xetserve pull."""
