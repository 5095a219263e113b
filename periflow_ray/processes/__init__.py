"""Commands whose whole process tree ends together, whatever happens to the process that started them."""

from periflow_ray.processes.command import Command, CommandResult, Leftover, end_leftovers
from periflow_ray.processes.output_lines import OutputLines

__all__ = ["Command", "CommandResult", "Leftover", "OutputLines", "end_leftovers"]
