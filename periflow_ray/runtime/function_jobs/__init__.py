"""One Ray Train worker a rank: runs the user's function, with the SDK's session in the same process."""
