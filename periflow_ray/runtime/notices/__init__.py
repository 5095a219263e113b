"""Cloud notices of preemption: read from the metadata service of the machine and turned into drains of its Ray node."""
