"""``completion``: the script that makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM_NAMES = ("periflow-ray", "pf")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in a shell, for periflow-ray and pf.

    \b
    Example:
      periflow-ray completion bash >> ~/.bashrc
      periflow-ray completion fish > ~/.config/fish/completions/periflow-ray.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None
    for program_name in PROGRAM_NAMES:
        variable = f"_{program_name.replace('-', '_').upper()}_COMPLETE"
        click.echo(complete(ctx.find_root().command, {}, program_name, variable).source())
