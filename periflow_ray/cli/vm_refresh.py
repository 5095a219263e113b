"""``vm refresh``: today's prices, from the clouds' own price interfaces."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.output import talk_console
from periflow_ray.errors import ClusterError


@click.command("refresh")
@click.option(
    "--cloud", "clouds", multiple=True, type=Choice(["aws", "azure"]), help="Only this cloud.  [default: both]"
)
def refresh(clouds: tuple[str, ...]) -> None:
    """Ask AWS and Azure for today's prices, spot too, and keep them, with their date, in your data folder.

    AWS wants credentials that allow pricing:GetProducts and ec2:DescribeSpotPriceHistory; Azure wants none. All
    commands use the copy from then on. The exit code is 1 if a cloud gave none.

    \b
    Example:
      periflow-ray vm refresh --cloud aws
    """
    from periflow_ray.cli.price_copy import write_price_copies
    from periflow_ray.cluster.providers.price_lists import fetch_aws_prices, fetch_azure_prices

    today = datetime.now(timezone.utc).date()
    talk = talk_console()
    problems = []
    for cloud in clouds or ("aws", "azure"):
        talk.print(f"Asking {cloud} for its prices ...")
        try:
            copy = fetch_aws_prices(today) if cloud == "aws" else fetch_azure_prices(today)
        except ClusterError as err:
            problems.append(f"{cloud}: {err}")
            continue
        num_prices = sum(len(regions) for regions in copy.usd.values())
        path = write_price_copies({cloud: copy})
        click.echo(f"{copy.source}, {copy.date}: {num_prices} prices, in '{path}'")
    if problems:
        raise ClusterError("; ".join(problems))
