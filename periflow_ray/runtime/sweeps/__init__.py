"""On the cluster: the driver of a sweep, Ray Tune in it, and the agents that run its trials."""
