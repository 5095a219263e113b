from __future__ import annotations

import itertools
import random

import pytest
from pathspec import GitIgnoreSpec

from periflow_ray.submit.ignore_patterns import parse_rules


def build_pattern(rng: random.Random) -> str:
    names = ["".join(rng.choices(["*", "a", "b", "?", "[ab]", "[a-c]", "**"], k=rng.randint(1, 5))) for _ in range(4)]
    parts = [rng.choice([*names, "**", "*"]) for _ in range(rng.randint(1, 6))]
    return rng.choice(["", "", "/", "!"]) + "/".join(parts) + rng.choice(["", "", "/"])


def test_rules_decide_as_before():
    rng = random.Random(7)
    paths = ["/".join(parts) for depth in range(1, 5) for parts in itertools.product(("a", "ab", "bba"), repeat=depth)]
    paths += [f"{path}/" for path in paths]
    num_matched = 0
    for _ in range(600):
        pattern = build_pattern(rng)
        ours, theirs = parse_rules([pattern]), GitIgnoreSpec.from_lines([pattern])
        found = [(path, ours.check_file(path).include) for path in rng.sample(paths, 60)]
        assert found == [(path, theirs.check_file(path).include) for path, _ in found], pattern
        num_matched += sum(include is not None for _, include in found)
    assert num_matched > 1000


def test_a_class_of_characters_holds_no_slash_as_in_git():
    for pattern in ("a[!b]c", "a[^b]c", "a[+-9]c", "a*[!b]*c", "**/a[]!]*c"):
        assert parse_rules([pattern]).check_file("a/c").include is None
    assert parse_rules(["a[!b]c", "*[[]*"]).check_file("axc").include
    assert parse_rules(["*[[]*"]).check_file("a[c").include


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 12 + "b", "a" * 40),
        ("*a" * 100 + "b", "a" * 250),
        ("**/" + "*a" * 30 + "b", "/".join(["a" * 200] * 10)),
        ("**/a/" * 12 + "b", "a/" * 500 + "c"),
        ("/x/" + "**/a/*/" * 12 + "b", "x/" + "a/" * 500 + "c"),
        ("?*" * 50 + "b", "a" * 250),
        ("*[a-c]" * 50 + "b", "a" * 250),
    ],
)
def test_no_pattern_takes_for_ever(pattern, path):
    """Each took longer than the universe is old."""
    rules = parse_rules([pattern])
    assert rules.check_file(path).include is None
    assert parse_rules([pattern.replace("b", "[ac]")]).check_file(path).include
