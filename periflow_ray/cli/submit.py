"""``periflow-ray submit`` (also ``job run``): a template becomes a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from periflow_ray.cli.options import storage_option, yes_option
from periflow_ray.cli.output import output_option, talk_console, write_output
from periflow_ray.cli.submission import Submission
from periflow_ray.cli.submission_options import SubmissionOptions, submission_options
from periflow_ray.cli.tables import draw_fields

if TYPE_CHECKING:
    from periflow_ray.plan import JobPlan
    from periflow_ray.store.root import StorageRoot


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@submission_options
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show the job's log until it ends.")
@yes_option
@output_option
@storage_option
def submit(
    root: StorageRoot, given: SubmissionOptions, dry_run: bool, follow: bool, is_confirmed: bool, output: str
) -> None:
    """Run a pf-template.yml as a job, and follow it to its end.

    The exit code is 0 only if the job succeeded. The directory given with -d appears in the job as
    <mount_path>/<name of the directory>.

    \b
    Examples:
      periflow-ray submit --local -f pf-template.yml -d ./cifar
      periflow-ray submit --local --num-devices 2 -f pf-template.yml -d ./cifar
      periflow-ray submit --address http://127.0.0.1:8265 -f pf-template.yml -d ./cifar --secret WANDB_API_KEY
      periflow-ray submit --dry-run -f pf-template.yml
    """
    submission = Submission(root, given)
    if dry_run:
        _show_plan(submission.plan, output)
        return
    record = submission.start(is_confirmed=is_confirmed)
    talk = talk_console()
    click.echo(f"Job ({record.job_id}) started successfully.")
    talk.print(f"Log: periflow-ray job log {record.job_id} -f    State: periflow-ray job view {record.job_id}")
    if follow:
        from periflow_ray.cli.follow import follow_job, raise_unless_success

        raise_unless_success(record.job_id, follow_job(root, record.job_id, console=talk))
        talk.print(f"Job ({record.job_id}) succeeded.")


def _show_plan(plan: JobPlan, output: str) -> None:
    from periflow_ray.plan import describe_plan, plan_document

    write_output(output, plan_document(plan), lambda console: draw_fields(console, dict(describe_plan(plan))))
