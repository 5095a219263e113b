"""Data on standard output: for people, or as JSON or YAML for programs; see ``tables`` for what people get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.theme import Theme

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.plain_text import escape_cell, escape_controls, escape_json
from periflow_ray.errors import DocumentError
from periflow_ray.finite_json import dump_json

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

Function = TypeVar("Function", bound=Callable[..., Any])

# Wide enough that nothing is folded when the output is a file or a pipe: a cell may have 20,000 characters.
PIPED_WIDTH = 50_000
_NUM_NAMED = 5


def output_option(function: Function) -> Function:
    """Adds ``-o table|json|yaml`` as ``output``."""
    return click.option(
        "-o",
        "--output",
        type=Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="A table for people, JSON or YAML for programs.",
    )(function)


def write_output(output: str, document: Any, draw: Callable[[Console], None]) -> None:
    """Write ``document`` as JSON or YAML, or let ``draw`` show it to a person.

    Numbers that JSON does not have are text, as in stored documents: "NaN", "Infinity", "-Infinity".
    """
    if output == "json":
        click.echo(escape_json(dump_json(_plain(document), indent=2, ensure_ascii=False)))
    elif output == "yaml":
        import yaml

        text = yaml.safe_dump(_plain(document), sort_keys=False, allow_unicode=True)
        if escape_controls(text) != text:
            # YAML takes some characters for harmless that are not; in ASCII all of them are spelled out.
            text = yaml.safe_dump(_plain(document), sort_keys=False)
        click.echo(text, nl=False)
    else:
        draw(data_console())


def tell_left_out(err: DocumentError) -> None:
    """Say which entry of a list is not shown because its document cannot be read."""
    click.echo(escape_controls(f"Left out: {err}"), err=True)


# Rich's own colours of progress bars, some of which cannot be read on a light ground.
_THEME = Theme(
    {f"progress.{name}": "none" for name in ("remaining", "elapsed", "percentage", "download", "data.speed")}
)


def tell_empty(root: StorageRoot, what: str, how: str) -> None:
    """Say that a list has nothing in it and what to do next, and name the storage root: perhaps it is another one.

    Args:
        what: the plural of what is listed.
        how: a command that makes the first of them.
    """
    is_missing = root.is_local and not root.local_path("").exists()
    where = f"storage root '{root.uri}'" + (", which does not exist yet" if is_missing else "")
    click.echo(escape_controls(f"No {what} in {where}. Make one: {how}"), err=True)


def tell_skipped(path: str, reason: str) -> None:
    """Say what of a directory is not packed or stored; see ``walk_tree``."""
    click.echo(escape_controls(f"Left out: '{path}' {reason}."), err=True)


def tell_ignored(paths: Sequence[str], git_trouble: str | None) -> None:
    """Say what of a workspace rules leave out: the first of it, and how much more there is; see ``Workspace``."""
    if not paths:
        return
    named = ", ".join(escape_cell(path) for path in paths[:_NUM_NAMED])
    more = f" and {len(paths) - _NUM_NAMED} more" if len(paths) > _NUM_NAMED else ""
    click.echo(f"Left out by .gitignore and .pfignore: {named}{more}.", err=True)
    if git_trouble is not None:
        click.echo(
            f"Files that git tracks may be among them, because git does not answer: {escape_cell(git_trouble)}",
            err=True,
        )


def data_console() -> Console:
    """A console on standard output; it shows text as it is and never cuts it off when piped."""
    console = _PlainConsole(markup=False, highlight=False, emoji=False, soft_wrap=False, theme=_THEME)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def talk_console() -> Console:
    """A console on standard error, for what is not the command's result."""
    return _PlainConsole(stderr=True, markup=False, highlight=False, emoji=False, theme=_THEME)


def is_drawable(console: Console) -> bool:
    """Whether lines may be drawn anew: on a terminal that knows how."""
    return console.is_terminal and not console.is_dumb_terminal


def clear_screen() -> None:
    """Make room for the next picture; below the former one where a terminal cannot be cleared."""
    if is_drawable(data_console()):
        click.clear()
    else:
        click.echo()


class _PlainConsole(Console):
    """A console whose own colours are the only control characters that reach the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            is_ours = segment.control is not None or segment.text.isprintable()
            yield segment if is_ours else Segment(escape_controls(segment.text), segment.style)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
