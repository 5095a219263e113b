"""A cluster as the YAML of Ray's cluster launcher. Pure: nothing here asks a cloud, the clock or the environment."""
