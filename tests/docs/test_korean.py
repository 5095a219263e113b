"""The Korean pages have what the English ones have: the same structure, blocks, commands, tables and links."""

from __future__ import annotations

import re

import pytest
from support.documents import DOCUMENTS, Document, find_tables, read_document

PAIRS = [
    (read_document(name.replace(".ko.md", ".md")), document)
    for name, document in DOCUMENTS.items()
    if name.endswith(".ko.md")
]
IDS = [korean.name for _, korean in PAIRS]


def find_targets(document: Document) -> list[str]:
    """Targets of links, in any order, without the one to the page's other language."""
    other = "README.md" if document.name.endswith(".ko.md") else "README.ko.md"
    return sorted(target for target in document.links if target != other)


def find_shapes(document: Document) -> list[list[int]]:
    """The number of cells in each row of each table."""
    return [[len(row) for row in table] for table in find_tables(document.text)]


def test_the_front_page_and_every_example_are_there_in_korean() -> None:
    english = {name for name in DOCUMENTS if re.fullmatch(r"(examples/\w[\w-]*/)?README\.md", name)}

    assert {korean.name for _, korean in PAIRS} == {name.replace(".md", ".ko.md") for name in english}


@pytest.mark.parametrize(("english", "korean"), PAIRS, ids=IDS)
def test_headings_commands_tables_and_links_are_the_same(english: Document, korean: Document) -> None:
    programs = ("periflow-ray", "pf", "python", "pip", "torchrun", "cd", "curl", "tar", "export")
    commands = korean.find_command_lines(programs)

    assert [level for level, _ in korean.headings] == [level for level, _ in english.headings]
    assert find_shapes(korean) == find_shapes(english)
    assert find_targets(korean) == find_targets(english)
    assert sorted(commands) == sorted(english.find_command_lines(programs))


def test_the_front_pages_have_the_same_blocks_of_code() -> None:
    english, korean = read_document("README.md"), read_document("README.ko.md")
    blocks = [re.findall(r"^```\w*\n.*?^```$", document.text, re.M | re.S) for document in (english, korean)]

    assert blocks[1] == blocks[0]
    assert blocks[0]


def test_the_front_pages_tables_show_the_same_code_in_every_row() -> None:
    rows = [
        [
            sorted(re.findall(r"`([^`]+)`", " ".join(row)))
            for table in find_tables(read_document(name).text)
            for row in table
        ]
        for name in ("README.md", "README.ko.md")
    ]

    assert rows[1] == rows[0]
