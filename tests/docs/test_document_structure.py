"""The documents hang together: links lead somewhere, the front page is short, what is generated is up to date."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from support.documents import DOCUMENTS, MANUAL, PRESENT_DOCUMENTS, ROOT_DIR, Document, find_tables, read_document

MAX_FRONT_PAGE_LINES = 150
MAX_FILES_PER_RECIPE = 3
RECIPES = [
    "A source of notices",
    "A storage backend",
    "A key of the template",
    "A command",
    "A sink for metrics",
    "A launcher",
    "A hint",
    "A drill",
    "A figure of the benchmarks",
    "An example",
]


def is_broken(document: Document, target: str) -> bool:
    """Whether a link leads to a file or a heading that does not exist; addresses on the web are not looked up."""
    if target.startswith(("http://", "https://")):
        return False
    path, _, anchor = target.partition("#")
    found = (document.path.parent / path).resolve() if path else document.path
    if not found.exists():
        return True
    return bool(anchor) and anchor not in read_document(found.relative_to(ROOT_DIR).as_posix()).anchors


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_link_leads_somewhere(document: Document) -> None:
    assert [target for target in document.links if is_broken(document, target)] == []


def test_every_page_is_reached_from_the_front_page() -> None:
    reached: set[str] = set()
    found = ["README.md"]
    while found:
        name = found.pop()
        reached.add(name)
        document = read_document(name)
        targets = [(document.path.parent / link.partition("#")[0]).resolve() for link in document.links]
        names = {target.relative_to(ROOT_DIR).as_posix() for target in targets if target.suffix == ".md"}
        found += names & DOCUMENTS.keys() - reached

    assert MANUAL.keys() - reached == set()


@pytest.mark.parametrize("document", PRESENT_DOCUMENTS.values(), ids=PRESENT_DOCUMENTS)
def test_files_and_folders_in_the_text_exist(document: Document) -> None:
    # The table of promises names tests, as folder/file; its own test looks for them.
    text = "\n".join(line for line in document.text.splitlines() if "examples_resume_exactly" not in line)
    mentioned = re.findall(r"(?<![\w./])((?:scripts|examples|periflow_ray|tests|docs)/[\w./<>-]*\w)", text)

    # A name with angle brackets stands for many; the recipes' test looks for their folders.
    assert [path for path in mentioned if "<" not in path and not (ROOT_DIR / path).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_the_front_page_is_short_and_begins_with_two_commands(name: str) -> None:
    document = read_document(name)
    commands = [line.split()[0] for line in document.find_blocks("sh")[0].splitlines()]

    assert len(document.text.splitlines()) <= MAX_FRONT_PAGE_LINES
    assert commands == ["scripts/demo", "scripts/test"]
    losses, *_ = find_tables(document.text)
    assert len(losses) == 1 + 7


@pytest.mark.parametrize(
    ("script", "document"),
    [("scripts/command_docs.py", "docs/commands.md"), ("scripts/template_docs.py", "docs/template-keys.md")],
)
def test_what_is_generated_is_up_to_date(script: str, document: str) -> None:
    done = subprocess.run([sys.executable, script], cwd=ROOT_DIR, capture_output=True, text=True, check=True)

    # To bring it up to date: scripts/generate-command-docs
    assert read_document(document).text == done.stdout


def test_every_design_note_has_a_number_a_date_and_a_line_in_the_list() -> None:
    notes = {name: document for name, document in MANUAL.items() if re.match(r"docs/design/\d{4}-", name)}
    listed = read_document("docs/design/README.md").find_table("Design notes")

    assert [row[0] for row in listed] == [
        f"[{document.headings[0][1]}]({name.removeprefix('docs/design/')})" for name, document in notes.items()
    ]
    for (_, date), (name, document) in zip(listed, notes.items(), strict=True):
        number = name.removeprefix("docs/design/")[:4]
        assert document.headings[0][1].startswith(f"{number}. ")
        assert document.text.splitlines()[2] == date
        assert re.fullmatch(r"\d{4}-\d{2}", date)
    assert [name[12:16] for name in notes] == [f"{number:04}" for number in range(1, len(notes) + 1)]


def test_every_figure_of_the_benchmarks_has_a_row() -> None:
    document = read_document("docs/benchmarks.md")
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT_DIR / "scripts" / "bench_figures").glob("*.py")}
    (figures,) = [node.value for node in ast.parse(sources["registry"]).body if isinstance(node, ast.AnnAssign)]
    assert isinstance(figures, ast.Dict)
    names = [str(key.value) for key in figures.keys if isinstance(key, ast.Constant)]
    shown = [row[0].strip("`") for row in document.find_table("Benchmarks")]

    assert names
    assert [name for name in names if not any(row.startswith(name) for row in shown)] == []
    # A row is named after its figure, or as a figure's module says.
    named = [row for row in shown if row.startswith(tuple(names)) or f'"{row}"' in "".join(sources.values())]
    assert named == shown
    assert document.text.count("<!-- bench -->") == document.text.count("<!-- /bench -->") == 1


def test_no_cell_of_a_tables_head_is_empty() -> None:
    heads = [(name, table[0]) for name, document in PRESENT_DOCUMENTS.items() for table in find_tables(document.text)]

    assert [(name, head) for name, head in heads if "" in head] == []


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_names_at_most_three_files(heading: str) -> None:
    section = read_document("CONTRIBUTING.md").find_section(heading)
    # A file that is yet to be made has a part of its name in angle brackets; its folder exists.
    files = set(re.findall(r"`([\w./<>-]+\.(?:py|md)|scripts/[\w-]+)`", section))
    paths = {path for path in files if "/" in path}
    missing = [path for path in paths if not (ROOT_DIR / re.sub(r"/[^/]*<.*", "", path)).exists()]

    assert 1 <= len(files) <= MAX_FILES_PER_RECIPE
    assert missing == []
