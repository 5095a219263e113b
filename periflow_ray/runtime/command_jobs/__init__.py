"""One Ray Train worker a node: runs the job's command there and serves the SDK of its ranks."""
