"""``completion``: the script that makes a shell complete commands, options and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from periflow_ray.cli.choice import Choice

PROGRAM_NAMES = ("periflow-ray", "pf")
# Of click's script for bash: where nothing of ours fits, bash would complete nothing, not even the name of a file.
_BASH_COMPLETE = "complete -o nosort -F"
_BASH_COMPLETE_WITH_FILES = "complete -o nosort -o bashdefault -o default -F"


@click.command()
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and their values in a shell, for periflow-ray and pf.

    \b
    Example:
      periflow-ray completion bash >> ~/.bashrc
      periflow-ray completion fish > ~/.config/fish/completions/periflow-ray.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None
    for program_name in PROGRAM_NAMES:
        variable = f"_{program_name.replace('-', '_').upper()}_COMPLETE"
        script = complete(ctx.find_root().command, {}, program_name, variable).source()
        click.echo(script.replace(_BASH_COMPLETE, _BASH_COMPLETE_WITH_FILES))
