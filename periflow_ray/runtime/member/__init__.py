"""One Ray Train worker's part in a job, the same for command jobs and function jobs: join, restore, save, leave."""
