"""What the workers of command jobs and function jobs have in common."""
