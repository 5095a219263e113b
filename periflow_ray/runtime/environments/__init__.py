"""What a job's command runs in: a container of an image, and a Python environment of its own."""
