"""Hands a plan to Ray: packages the workspace, starts the embedded cluster where asked, talks to the Jobs API."""
