"""Ray clusters on AWS and Azure, from the names of their VMs."""
