"""What runs on the head of a cluster that ``cluster up`` made, beside Ray."""
