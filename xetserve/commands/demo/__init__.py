"""xetserve demo."""
