"""A training under random losses, stops, faults and damage, and what must hold all the same; see ``scripts/chaos``.

schedule.py     seed -> what happens, and when
events/         what may happen, one file for each kind of thing; registry.py lists them
invariants.py   what must hold after each event, and at the end
training.py     the cluster and its job
storages.py     where the job's storage root lies
run.py          from one event to the next
janitor.py      tidies up, also after a run that was killed
"""
