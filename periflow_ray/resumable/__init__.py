"""Stop a training between any two batches and go on exactly: the place in the data, and the random generators.

    loader = ResumableDataLoader(dataset, batch_size=32, seed=0, num_workers=4)
    ...
    state = {"loader": loader.state_dict(), "rng": gather_rng_states(), ...}      # when saving, on all ranks
    ...
    loader.load_state_dict(state["loader"])                                       # when resuming
    restore_rng_states(state["rng"])

``resumable_sampler`` is the same for a ``DataLoader`` of your own. Epoch and seed alone decide an epoch's order, and
the ranks take turns in it, so that the order survives another number of ranks. Lightning keeps a
``ResumableDataLoader``'s place in its checkpoints by itself, and leaves its sampler alone.
"""

from __future__ import annotations

from periflow_ray.resumable.data_loader import ResumableDataLoader
from periflow_ray.resumable.rng_states import gather_rng_states, restore_rng_states
from periflow_ray.resumable.sampler import ResumableSampler, resumable_sampler
from periflow_ray.resumable.seeded_samples import SeededSamples

__all__ = [
    "ResumableDataLoader",
    "ResumableSampler",
    "SeededSamples",
    "gather_rng_states",
    "restore_rng_states",
    "resumable_sampler",
]
