"""xetserve doctor."""
