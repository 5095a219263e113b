"""The project's documents in Markdown: their blocks, tables, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT_DIR = Path(__file__).parents[2]


@dataclass(frozen=True)
class Document:
    """One Markdown file; ``name`` is its path from the root of the repository."""

    name: str
    text: str

    @property
    def path(self) -> Path:
        return ROOT_DIR / self.name

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.M | re.S)

    @property
    def headings(self) -> list[tuple[int, str]]:
        """Level and text of each heading, in order."""
        return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.*)$", self.prose, re.M)]

    @property
    def anchors(self) -> set[str]:
        """The names by which links reach the headings, as GitHub makes them."""
        return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for _, text in self.headings}

    @property
    def links(self) -> list[str]:
        """Targets of all links, in order."""
        return re.findall(r"\]\(([^)]+)\)", self.prose)

    def find_blocks(self, language: str) -> list[str]:
        """Contents of the fenced blocks of a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.M | re.S)

    def find_inline_code(self) -> list[str]:
        """All code in backticks outside blocks, each on one line."""
        return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", self.prose)]

    def find_section(self, heading: str) -> str:
        """The text below a heading, up to the next one."""
        assert heading in [text for _, text in self.headings], f"{self.name} has no heading {heading!r}"
        section = self.text.split(f"# {heading}\n", 1)[1]
        return re.split(r"^#+ ", section, maxsplit=1, flags=re.M)[0]

    def find_table(self, heading: str) -> list[list[str]]:
        """Rows of the first table below a heading, without the table's own head."""
        (first, *_) = find_tables(self.find_section(heading))
        return first[1:]

    def find_command_lines(self, programs: tuple[str, ...]) -> list[str]:
        """Every line that starts one of the programs: in shell blocks, in indented blocks and in backticks."""
        blocks = [*self.find_blocks("sh"), *re.findall(r"(?:^ {4}.*\n)+", self.prose, re.M)]
        lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        starts = tuple(f"{program} " for program in programs)
        return [line for line in [*lines, *self.find_inline_code()] if line.startswith(starts)]


def find_tables(text: str) -> list[list[list[str]]]:
    """All tables of a text: their rows of cells, the head first, without the line of dashes."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    return [[_cells(line) for index, line in enumerate(table.splitlines()) if index != 1] for table in tables]


def read_document(name: str) -> Document:
    """The document at a path from the root of the repository."""
    return Document(name, (ROOT_DIR / name).read_text(encoding="utf-8"))


def _cells(line: str) -> list[str]:
    # A bar after a backslash is part of a cell.
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


_PATTERNS = ("*.md", "docs/**/*.md", "examples/*/*.md", "tests/*.md")
DOCUMENTS = {
    name: read_document(name)
    for name in sorted(
        path.relative_to(ROOT_DIR).as_posix() for pattern in _PATTERNS for path in ROOT_DIR.glob(pattern)
    )
}
# A change that is told there may name commands and files that are gone.
PRESENT_DOCUMENTS = {name: document for name, document in DOCUMENTS.items() if name != "CHANGELOG.md"}
MANUAL = {name: document for name, document in PRESENT_DOCUMENTS.items() if name.startswith(("README", "docs/"))}
