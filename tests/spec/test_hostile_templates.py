"""Whatever a file holds, reading it gives a template or a list of problems: never a traceback, never executed code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from periflow_ray.errors import TemplateError
from periflow_ray.spec import Template, load_template, yaml_tree

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.yml"))
NESTED_ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + previous] * 9)}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def _each_yaml_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML falls back to its Python parser where libyaml is not compiled in; both must do."""
    monkeypatch.setattr(yaml_tree, "_LOADER", getattr(yaml, request.param))


def problems_of(text: str | bytes) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        load_template(text)
    return str(caught.value).split("\n")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n", "~"])
def test_an_empty_document_says_what_a_template_needs(text: str) -> None:
    assert problems_of(text) == [
        "pf-template.yml:1:1: the template is empty; it must hold at least vm, num_devices and job_setting"
    ]


@pytest.mark.parametrize(
    ("text", "described"), [("- vm: local\n", "a list"), ("local\n", "the text 'local'"), ("5", "the number 5")]
)
def test_a_document_that_is_no_mapping_is_refused(text: str, described: str) -> None:
    assert problems_of(text) == [
        f"pf-template.yml:1:1: the template is {described}; it must be a mapping with vm, num_devices and job_setting"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vm: local\n---\nvm: local\n", "2:1: a second document starts here"),
        ("job_setting:\n\ttype: custom\n", "2:1: a tab stands where YAML wants spaces"),
        ("vm: local\n  num_devices: 1\n", "2:14: not valid YAML: mapping values are not allowed"),
        ("vm: @local\n", "1:5: not valid YAML: '@' cannot start a value; put the value in quotes"),
        ("vm: 'local\n", "not valid YAML: found unexpected end of stream"),
        ("%YAML 9.9\n---\nvm: local\n", "not valid YAML: found incompatible YAML document"),
        ("vm: lo\0cal\n", "1:7: control character U+0000 is not allowed in YAML"),
        ("vm: local\nname: \x1b[31mred\n", "2:7: control character U+001B is not allowed in YAML"),
        ("vm: \ud800\n", "1:5: control character U+D800 is not allowed in YAML"),
        (b"vm: local\nname: \xff\n", "2:7: byte 0xff is not UTF-8 text; save the file as UTF-8"),
        ("vm: *machine\n", "1:5: alias *machine refers to nothing"),
        ("vm: &vm [*vm]\n", "1:10: alias *vm stands inside the value that it refers to"),
        ("&all\nvm: *all\n", "2:5: alias *all stands inside the value that it refers to"),
        (NESTED_ALIASES, "5:12: the template holds more than 10000 values"),
        ("a: 1\n" * 100_000, "5000:1: the template holds more than 10000 values"),
        # Where libyaml has a limit too, it is the first to meet one, further on.
        ("vm: " + "[" * 100_000, ": values are nested deeper than 32 levels"),
        ("vm: " + "{a: " * 100_000, "1:126: values are nested deeper than 32 levels"),
        ("- " * 100_000, "1:65: values are nested deeper than 32 levels"),
        ("vm: !!python/object/apply:os.system ['exit']\n", "1:5: tag '!!python/object/apply:os.system' is not allowed"),
        ("!!python/object/new:os._exit [1]\n", "1:1: tag '!!python/object/new:os._exit' is not allowed"),
        ("vm: !Ref machine\n", "1:5: tag '!Ref' is not allowed"),
        ("vm: !!binary aGk=\n", "1:5: tag '!!binary' is not allowed"),
        ("? [a, b]\n: c\n", "1:3: a list, a mapping or a tagged value cannot be a key"),
        ("? \n: c\n", "1:2: there is no key before ':'"),
        ("1: c\n", "1:1: unknown key '1'."),
        ("<<: 5\n", "1:5: '<<' merges mappings only"),
        ('name: "\\U00110000"\n', "not valid YAML: "),
    ],
)
def test_what_no_template_needs_is_refused_with_its_place(text: str | bytes, problem: str) -> None:
    assert any(problem in line for line in problems_of(text))


def test_a_tag_inside_an_otherwise_valid_template_is_its_only_problem() -> None:
    text = TEMPLATES[0].read_text().replace("vm: ", "vm: !!python/name:os.getcwd ")

    assert [line.split("; ")[0] for line in problems_of(text)] == [
        "pf-template.yml:6:5: tag '!!python/name:os.getcwd' is not allowed: a template holds plain values only"
    ]


def test_aliases_cannot_stack_up_more_depth_than_can_be_written() -> None:
    text = "a: &a [[[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]]\nb: [[[[[[[[[[[*a]]]]]]]]]]]\n"

    assert problems_of(text) == [
        "pf-template.yml:2:15: alias *a nests values deeper than 32 levels; a template needs 5"
    ]


@pytest.mark.parametrize("text", ["#" * 10_000_000, b"[" * 10_000_000])
def test_a_huge_file_is_refused_unread(text: str | bytes) -> None:
    assert problems_of(text) == [
        "pf-template.yml:1:1: the template is 9.5 MiB large; at most 1 MiB is allowed. Is it the right file?"
    ]


def gives_template_or_problems(text: str | bytes) -> None:
    try:
        template = load_template(text, known_vms=["local"], overrides={"vm": "local"})
    except TemplateError as err:
        lines = str(err).splitlines()
        assert lines
        assert all(line.startswith(("pf-template.yml:", "--vm: ", "... and ")) for line in lines)
    else:
        assert isinstance(template, Template)


# The parser is chosen once for all examples of a test, so the function-scoped fixture does no harm.
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
YAML_PIECES = ["\n", "  ", "\t", ": ", "- ", "&a ", "*a", "<<: ", "!!int ", "!x ", "|\n", ">\n", "\\\n", '"', "'", "{"]
YAML_PIECES += ["}", "[", "]", "? ", "#", "---\n", "...\n", "%YAML 1.1\n", "null", "~", "yes", "1e9", "0x1F", "\x85"]
YAML_PIECES += ["\u2028", "\ufeff", "\\x00", '"\\uD800"', "vm", "docker", "command", "env_var", "dist: ", "é", "😀"]


@FUZZ
@given(st.text())
@example("\ufeff\ufeff")
def test_any_text_gives_a_template_or_problems(text: str) -> None:
    gives_template_or_problems(text)


@FUZZ
@given(st.lists(st.sampled_from(YAML_PIECES)).map("".join))
@example("!!int '\n\n'")
@example('a: !!bool "x\\ny"\nnum_devices: !!int "a\\nb"\n')
def test_any_mix_of_yaml_syntax_gives_a_template_or_problems(text: str) -> None:
    gives_template_or_problems(text)


@FUZZ
@given(st.binary())
def test_any_bytes_give_a_template_or_problems(data: bytes) -> None:
    gives_template_or_problems(data)


@FUZZ
@given(
    st.sampled_from([path.read_text() for path in TEMPLATES]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.sampled_from(YAML_PIECES) | st.text(max_size=3))),
)
def test_any_mutation_of_a_good_template_gives_a_template_or_problems(
    text: str, edits: list[tuple[float, int, str]]
) -> None:
    for place, num_removed, inserted in edits:
        start = int(place * len(text))
        text = text[:start] + inserted + text[start + num_removed :]
    gives_template_or_problems(text)
