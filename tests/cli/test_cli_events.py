from __future__ import annotations

import json


def test_events_are_a_table(run_cli, sample_root):
    assert (
        run_cli("job", "events", "1").stdout
        == """\
┏━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ Time                ┃ Attempt ┃ Kind      ┃ Event                              ┃
┡━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ 2026-01-01 00:00:00 │ 1       │ started   │ Attempt 1 starts on 2 nodes.       │
│ 2026-01-01 00:00:09 │ 2       │ succeeded │ Every node ended with exit code 0. │
└─────────────────────┴─────────┴───────────┴────────────────────────────────────┘
"""
    )


def test_events_are_a_list_for_programs(run_cli, sample_root):
    assert json.loads(run_cli("job", "events", "1", "-o", "json").stdout) == [
        {
            "time": "2026-01-01T00:00:00.000+00:00",
            "attempt": 1,
            "kind": "started",
            "text": "Attempt 1 starts on 2 nodes.",
        },
        {
            "time": "2026-01-01T00:00:09.000+00:00",
            "attempt": 2,
            "kind": "succeeded",
            "text": "Every node ended with exit code 0.",
        },
    ]


def test_a_job_to_which_nothing_happened_has_no_events(run_cli, sample_root):
    assert json.loads(run_cli("job", "events", "3", "-o", "json").stdout) == []
