"""On the cluster: driver -> Ray Train worker group -> node agents -> the user's processes."""
