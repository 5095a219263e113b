from __future__ import annotations

from periflow_ray.runtime.monitor.agreed_save import AgreedSave
from periflow_ray.store.checkpoints import Manifest

MIXED = "nodes saved at different steps (12, 13)"


def manifest_of(step: int) -> Manifest:
    return Manifest(f"step-{step:08}", 1, step, attempt=1, world_size=2, num_nodes=2, created_unix_s=0.0, files=())


def test_nothing_is_asked_for_before_a_save_is_announced():
    agreed = AgreedSave()
    agreed.see((10, 1))
    agreed.see((11, 1))
    agreed.make_void("nobody asked")
    agreed.end(20, "nobody asked")
    agreed.take_commit((11, 1), manifest_of(11))
    assert not agreed.is_asked_for((11, 1))
    assert (agreed.is_void, agreed.saved, agreed.why_void((11, 1))) == (False, None, None)


def test_a_checkpoint_at_the_agreed_step_is_the_one():
    agreed = AgreedSave()
    agreed.require(12, [(10, 1)])
    assert [agreed.is_asked_for(checkpoint) for checkpoint in [(10, 1), (11, 1), (12, 1), (12, 2)]] == [
        False,
        False,
        True,
        True,
    ]
    agreed.take_commit((10, 1), manifest_of(10))
    assert agreed.saved is None
    agreed.see((12, 1))
    agreed.see((12, 1))
    agreed.take_commit((12, 1), manifest_of(12))
    assert agreed.saved == manifest_of(12)


def test_steps_that_differ_make_all_of_it_void():
    agreed = AgreedSave()
    agreed.require(12, [])
    agreed.see((13, 1))
    assert not agreed.is_void
    agreed.see((12, 1))
    assert agreed.is_void
    assert [agreed.why_void((step, 1)) for step in (11, 12, 13, 99)] == [None, MIXED, MIXED, MIXED]


def test_a_checkpoint_that_was_on_its_way_before_is_not_harmed():
    agreed = AgreedSave()
    agreed.require(10, [(10, 1)])
    agreed.see((10, 1))
    agreed.see((11, 1))
    assert not agreed.is_void
    agreed.make_void("a rank was late")
    assert (agreed.why_void((10, 1)), agreed.why_void((11, 1))) == (None, "a rank was late")
    # It is a whole one, and no older than what was asked for.
    agreed.take_commit((10, 1), manifest_of(10))
    assert agreed.saved == manifest_of(10)


def test_what_comes_late_for_a_void_step_stays_void_when_the_next_is_agreed():
    agreed = AgreedSave()
    agreed.require(12, [])
    agreed.make_void("a rank was late")
    agreed.require(20, [])
    assert not agreed.is_void
    late = "a rank was late"
    assert [agreed.why_void((step, 1)) for step in (11, 12, 19, 20)] == [None, late, late, None]
    agreed.see((12, 1))
    agreed.see((20, 1))
    assert not agreed.is_void
    agreed.make_void("late again")
    agreed.require(40, [])
    assert [agreed.why_void((step, 1)) for step in (11, 12, 39, 40)] == [None, "late again", "late again", None]


def test_after_a_checkpoint_that_could_not_be_stored_any_later_one_will_do():
    agreed = AgreedSave()
    agreed.require(12, [(10, 1)])
    agreed.take_failure((10, 1))
    assert not agreed.has_failed
    agreed.see((12, 1))
    agreed.take_failure((12, 1))
    assert (agreed.has_failed, agreed.is_void) == (True, False)
    # A save of the script's own is measured by no step that failed.
    agreed.see((15, 1))
    agreed.take_commit((15, 1), manifest_of(15))
    assert (agreed.is_void, agreed.saved) == (False, manifest_of(15))
    agreed.require(20, [])
    assert (agreed.has_failed, agreed.saved) == (False, None)


def test_a_void_save_has_not_failed():
    agreed = AgreedSave()
    agreed.require(12, [])
    agreed.see((12, 1))
    agreed.make_void("a rank was late")
    agreed.take_failure((12, 1))
    assert not agreed.has_failed


def test_when_nothing_is_asked_for_any_more_later_checkpoints_are_as_usual():
    agreed = AgreedSave()
    agreed.require(12, [])
    agreed.end(12, "not saved in time")
    assert [agreed.why_void((step, 1)) for step in (11, 12, 13)] == [None, "not saved in time", None]
    assert not agreed.is_asked_for((13, 1))
    agreed.require(30, [])
    assert [agreed.why_void((step, 1)) for step in (12, 13, 30)] == ["not saved in time", None, None]
