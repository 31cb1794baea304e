"""The commands: each builds its objects, hands them to each other, and runs them."""
