"""Ray's cluster launcher, which looks every second for the machine that it waits for; Ray's own looks every five.

python -m periflow_ray.runtime.ray_up --yes cluster.yaml
"""

from periflow_ray.runtime.ray_private import run_launcher

if __name__ == "__main__":
    run_launcher(look_interval_s=1)
