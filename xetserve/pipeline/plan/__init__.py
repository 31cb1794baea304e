"""From the terms of a reconstruction to the fetches of a window."""
