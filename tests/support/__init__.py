"""What tests share: servers, clusters, jobs, looks at processes; imported as ``support`` and under no other name."""
