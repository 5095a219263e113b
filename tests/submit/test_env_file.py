"""Files of variables mean what they mean to python-dotenv."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from periflow_ray.errors import UsageError
from periflow_ray.submit.env_file import parse_assignments

# What python-dotenv 1.2 makes of each text, but for the ends of lines inside quotes, which it leaves as they are.
CASES = [
    ("A=1", {"A": "1"}),
    ("B = 2", {"B": "2"}),
    ("B\t=\t2 \t", {"B": "2"}),
    ("C=3 # three", {"C": "3"}),
    ("C=3# three", {"C": "3# three"}),
    ("C=#3", {"C": "#3"}),
    ("C= # three", {"C": ""}),
    ('D="a b" # c', {"D": "a b"}),
    ("D='a b'# c", {"D": "a b"}),
    ('D="a # b"', {"D": "a # b"}),
    ("export E=1", {"E": "1"}),
    ("export  E = 'x'", {"E": "x"}),
    ("export=1", {"export": "1"}),
    ("EMPTY=\nNEXT=1", {"EMPTY": "", "NEXT": "1"}),
    ('EMPTY=""', {"EMPTY": ""}),
    ("NAME", {"NAME": None}),
    ("NAME # taken from here", {"NAME": None}),
    ("export NAME", {"NAME": None}),
    ("URL=s3://bucket/a=b?c=d#e", {"URL": "s3://bucket/a=b?c=d#e"}),
    ("MESSAGE=it's fine", {"MESSAGE": "it's fine"}),
    ('JSON={"a": 1}', {"JSON": '{"a": 1}'}),
    ('JSON=\'{"a": "it\\\'s"}\'', {"JSON": '{"a": "it\'s"}'}),
    ('KEY="line 1\nline 2"\nB=2', {"KEY": "line 1\nline 2", "B": "2"}),
    (r'KEY="line 1\nline 2\t\"x\" \\"', {"KEY": 'line 1\nline 2\t"x" \\'}),
    (r"KEY='line 1\nline 2 \\'", {"KEY": "line 1\\nline 2 \\"}),
    (r"PLAIN=a\nb", {"PLAIN": r"a\nb"}),
    ("PASSWORD=pa$$word${X}", {"PASSWORD": "pa$$word${X}"}),
    ('PASSWORD="$HOME"', {"PASSWORD": "$HOME"}),
    ("# a comment\n\n   \n  # another\n\tA=1", {"A": "1"}),
    ("A=1\r\nB='x\r\ny'\r\n", {"A": "1", "B": "x\ny"}),
    ("\ufeffA=1", {"A": "1"}),
    ("A=1\nA=2", {"A": "2"}),
    ("이름=값", {"이름": "값"}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_line_means_what_it_means_elsewhere(text, expected):
    assert {name: value for _, name, value in parse_assignments(text, "job.env")} == expected


PARTS = [*"AB1=\"'#\\n \t$x", "\n", "export ", "A=", "${B}"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
def test_any_text_means_what_it_means_to_python_dotenv(text: str) -> None:
    dotenv = pytest.importorskip("dotenv", reason="pip install python-dotenv")
    try:
        ours = {name: value for _, name, value in parse_assignments(text, "job.env")}
    except UsageError:
        return
    # Where it warns of a line, and of names that no shell has, submit refuses the file.
    has_errors = any(binding.error for binding in dotenv.parser.parse_stream(io.StringIO(text)))
    if not has_errors and all(name.isidentifier() for name in ours):
        assert ours == dict(dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False))


def test_lines_are_counted_over_values_of_several_lines():
    text = "# one\nA='2\n3\n'\n\nB=6"
    assert [(number, name) for number, name, _ in parse_assignments(text, "job.env")] == [(2, "A"), (6, "B")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('A=1\nB="open\nC=3', 'job.env:2: the value begins with " and has no " at its end. Close it.'),
        ("B='hunter2", "job.env:1: the value begins with ' and has no ' at its end. Close it."),
        (
            'B="a" hunter2',
            'job.env:1: something follows the value\'s last ". Put the whole value into quotes, and write a " in it as '
            '\\".',
        ),
        # The quote that was not closed swallows the lines up to the next one.
        (
            "B='hunter2\nC='x'",
            "job.env:1: something follows the value's last '. Put the whole value into quotes, and write a ' in it as "
            "\\'.",
        ),
    ],
)
def test_quotes_that_do_not_fit_are_refused_without_repeating_a_value(text, error):
    with pytest.raises(UsageError) as caught:
        list(parse_assignments(text, "job.env"))
    assert str(caught.value) == error
