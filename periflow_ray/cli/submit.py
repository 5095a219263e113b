"""``periflow-ray submit`` (also ``job run``): a template becomes a job."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.options import storage_option, yes_option
from periflow_ray.cli.output import output_option, talk_console, write_output
from periflow_ray.cli.submission import Submission
from periflow_ray.cli.submission_options import SubmissionOptions, submission_options
from periflow_ray.cli.tables import draw_fields

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@submission_options
@click.option("--dry-run", is_flag=True, help="Check everything, show the plan, and do nothing.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show the job's log until it ends.")
@yes_option
@output_option
@storage_option
def submit(
    root: StorageRoot, given: SubmissionOptions, dry_run: bool, follow: bool, is_confirmed: bool, output: str
) -> None:
    """Run a pf-template.yml as a job, and follow it to its end.

    The exit code is 0 only if the job succeeded. The directory given with -d appears in the job as
    <mount_path>/<name of the directory>. With -o json or -o yaml standard output has the job as job view shows it, once
    it has ended or with --no-follow at once, and everything else goes to standard error.

    \b
    Examples:
      periflow-ray submit --local -f pf-template.yml -d ./cifar
      periflow-ray submit --local --num-devices 2 -f pf-template.yml -d ./cifar
      periflow-ray submit --address http://127.0.0.1:8265 -f pf-template.yml -d ./cifar --secret WANDB_API_KEY
      periflow-ray submit --dry-run -f pf-template.yml
      periflow-ray submit --no-follow -o json -f pf-template.yml -d ./cifar
    """
    submission = Submission(root, given)
    if dry_run:
        _show_plan(submission, output)
        return
    record = submission.start(is_confirmed=is_confirmed)
    job_id, is_for_people = record.job_id, output == "table"
    talk = talk_console()
    click.echo(f"Job ({job_id}) started successfully.", err=not is_for_people)
    talk.print(f"Log: periflow-ray job log {job_id} -f    State: periflow-ray job view {job_id}")
    try:
        if follow:
            from periflow_ray.cli.follow import follow_job, raise_unless_success

            state = follow_job(root, job_id, console=talk, logs_to_stderr=not is_for_people)
            raise_unless_success(root, job_id, state)
            talk.print(f"Job ({job_id}) succeeded.")
    finally:
        # Whatever became of it, programs learn which job it is.
        if not is_for_people:
            from periflow_ray.cli.job_table import job_document
            from periflow_ray.jobs import read_job

            write_output(output, job_document(read_job(root, job_id)), lambda console: None)


def _show_plan(submission: Submission, output: str) -> None:
    from periflow_ray.plan import describe_plan, plan_document
    from periflow_ray.store.size_text import format_size

    workspace, plan = submission.check(), submission.plan
    document, fields = plan_document(plan), dict(describe_plan(plan))
    if plan.vm.is_local:
        fields["Python"] += f"\n{sys.executable} ({platform.python_version()})"
    if submission.requirements is not None and submission.requirements.names:
        names = submission.requirements.names
        document["requirements"] = names
        fields["Python"] += f"\n{plan.python.requirements}: {', '.join(names)}" if plan.python else ""
    if workspace is not None:
        files = f"{len(workspace.files)} file{'' if len(workspace.files) == 1 else 's'}"
        fields["Workspace"] = f"{files}, {format_size(workspace.size)}, from {workspace.directory}"
        document["workspace"] = {"num_files": len(workspace.files), "size_bytes": workspace.size}
    write_output(output, document, lambda console: draw_fields(console, fields))
