"""On the cluster: driver -> Ray Train worker group -> members -> the user's processes."""
