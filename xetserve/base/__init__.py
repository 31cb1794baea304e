"""Small pieces that any package may use."""
