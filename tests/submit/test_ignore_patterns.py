from __future__ import annotations

import pytest

from periflow_ray.submit.ignore_patterns import parse_rules


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


def test_a_pattern_says_nothing_of_what_is_below_what_it_matches():
    """A deeper rule may take a file of a directory back in, once the directory itself has been."""
    for pattern, path in (("out", "out"), ("out/", "out/"), ("*/", "a/b/"), ("a/**/", "a/b/"), ("out/*", "out/b")):
        rules = parse_rules([pattern])
        assert rules.check_file(path).include
        assert rules.check_file(f"{path.rstrip('/')}/file").include is None or pattern == "out/"
    assert parse_rules(["a/**", "a/**/"]).check_file("a/").include is None
