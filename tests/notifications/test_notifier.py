"""Messages on their way to servers that answer, refuse, stutter or keep silent; the job feels none of it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.message_server import Answer, MessageServer

from periflow_ray.credentials import Credential, create_credential, credentials_path
from periflow_ray.jobs import JobRecord
from periflow_ray.runtime.notifications import Notifier, make_notifier
from periflow_ray.runtime.notifications.notifier import MAX_WAITING_MESSAGES
from periflow_ray.runtime.notifications.receivers import Receiver, SlackChannel, Webhook
from periflow_ray.spec import PluginSpec

# Answers are awaited for as long as the machine needs, and tries follow each other at once.
QUICK: dict[str, Any] = {"timeout_s": 30.0, "retry_delays_s": (0.0, 0.0), "close_timeout_s": 30.0}
SLACK = Credential("chat", "slack", {"token": "xoxb-hunter2"}, 0.0)


@pytest.fixture
def problems() -> list[str]:
    """What was told to the job's events."""
    return []


@pytest.fixture
def make(record: JobRecord, problems: list[str]) -> Callable[..., Notifier]:
    """Makes a notifier of job 12, with short delays."""

    def make_with(*receivers: Receiver, **options: Any) -> Notifier:
        return Notifier(record, receivers, problems.append, **{**QUICK, **options})

    return make_with


def test_a_bot_posts_to_the_channel(server: MessageServer, make: Callable[..., Notifier], problems: list[str]) -> None:
    notifier = make(SlackChannel("training", SLACK, f"{server.url}/api/"))
    notifier.notify("failed", "node 1: loss < 0 & <!channel>", step=840)
    notifier.close()
    [posted] = server.posted
    assert (posted.path, posted.authorization) == ("/api/chat.postMessage", "Bearer xoxb-hunter2")
    assert posted.document == {
        "channel": "training",
        "text": "*Job 12 (cifar)*: has failed at step 840.\nnode 1: loss &lt; 0 &amp; &lt;!channel&gt;\n"
        "Next: nothing starts by itself.\nLook: `periflow-ray job view 12`",
        "unfurl_links": False,
    }
    assert problems == []


def test_an_incoming_webhook_of_slack_needs_no_token(server: MessageServer, make: Callable[..., Notifier]) -> None:
    credential = Credential("chat", "slack", {"webhook_url": f"{server.url}/services/T1"}, 0.0)
    server.answers.append(Answer(body="ok"))
    notifier = make(SlackChannel("training", credential))
    notifier.notify("success")
    notifier.close()
    assert [(posted.path, posted.authorization) for posted in server.posted] == [("/services/T1", None)]
    assert server.documents == [{"text": "*Job 12 (cifar)*: has finished.\nLook: `periflow-ray job view 12`"}]


def test_the_plugins_of_a_template_get_every_message_in_order(
    server: MessageServer, record: JobRecord, problems: list[str]
) -> None:
    create_credential("chat", "slack", {"token": "xoxb-hunter2"})
    create_credential("hook", "webhook", {"url": f"{server.url}/hook", "authorization": "Bearer hunter3"})
    plugin = {"slack": {"channel": "training", "credential_id": "chat"}, "webhook": {"credential_id": "hook"}}
    environ = {"PERIFLOW_SLACK_API": server.url}
    notifier = make_notifier(PluginSpec.model_validate(plugin), record, problems.append, environ)
    assert notifier is not None
    notifier.notify("preempted", "node 1", step=7, attempt=1)
    notifier.notify("resumed", step=7, attempt=2)
    notifier.close()
    by_path = {path: [p for p in server.posted if p.path == path] for path in ("/hook", "/chat.postMessage")}
    assert len(by_path["/chat.postMessage"]) == 2
    assert [(p.authorization, p.document["kind"]) for p in by_path["/hook"]] == [
        ("Bearer hunter3", "preempted"),
        ("Bearer hunter3", "resumed"),
    ]
    assert len({p.document["id"] for p in by_path["/hook"]}) == 2
    assert problems == []


def test_a_webhook_s_address_may_stand_in_the_template(
    server: MessageServer, record: JobRecord, problems: list[str]
) -> None:
    plugin = PluginSpec.model_validate({"webhook": {"url": f"{server.url}/hook"}})
    notifier = make_notifier(plugin, record, problems.append)
    assert notifier is not None
    notifier.notify("success", step=3)
    notifier.close()
    assert [posted.path for posted in server.posted] == ["/hook"]


@pytest.mark.parametrize("plugin", [None, PluginSpec(), PluginSpec.model_validate({"wandb": {"credential_id": "w"}})])
def test_a_template_without_receivers_has_no_notifier(
    record: JobRecord, problems: list[str], plugin: PluginSpec | None
) -> None:
    assert make_notifier(plugin, record, problems.append) is None
    assert problems == []


def test_a_credential_that_cannot_be_used_is_told_and_the_job_goes_on(record: JobRecord, problems: list[str]) -> None:
    create_credential("chat", "wandb", {"api_key": "hunter2"})
    given = {"slack": {"channel": "c", "credential_id": "chat"}, "webhook": {"credential_id": "hok"}}
    plugin = PluginSpec.model_validate(given)
    assert make_notifier(plugin, record, problems.append) is None
    assert problems[0] == "plugin.slack is not used: credential 'chat' is of type wandb, not slack."
    assert problems[1].startswith("plugin.webhook is not used: credential 'hok' does not exist in ")
    assert len(problems) == 2

    os.chmod(credentials_path(), 0o644)
    assert make_notifier(plugin, record, problems.append) is None
    assert "may be read by others" in problems[2]


@pytest.mark.parametrize(
    "troubles",
    [
        [Answer(429, headers={"Retry-After": "0"}), Answer(503)],
        [Answer(body='{"ok": false, "error": "ratelimited"}'), Answer(500, body="oops")],
    ],
)
def test_passing_trouble_is_tried_again(
    server: MessageServer, make: Callable[..., Notifier], problems: list[str], troubles: list[Answer]
) -> None:
    server.answers.extend(troubles)
    notifier = make(SlackChannel("training", SLACK, server.url))
    notifier.notify("success")
    notifier.close()
    assert len(server.posted) == 3
    assert problems == []


@pytest.mark.parametrize(
    ("answer", "num_tries", "reason"),
    [
        (Answer(500), 3, "it answers 500 Internal Server Error"),
        (Answer(404, body="hunter2"), 1, "it answers 404 Not Found"),
        (Answer(302, headers={"Location": "/other"}), 1, "it answers 302 Found; use the address that it redirects to"),
        (Answer(599), 3, "it answers 599"),
        (
            Answer(body='{"ok": false, "error": "channel_not_found"}'),
            1,
            "Slack answers channel_not_found; check its name, and invite the app to it",
        ),
        (Answer(body='{"ok": false, "error": "Hunter2!"}'), 1, "Slack answers an unknown error"),
        (Answer(body="<html>"), 1, "its answer is not one of Slack's"),
        (Answer(body="[]"), 1, "its answer is not one of Slack's"),
    ],
)
def test_lasting_trouble_is_told_once_however_many_messages_there_are(
    server: MessageServer,
    make: Callable[..., Notifier],
    problems: list[str],
    answer: Answer,
    num_tries: int,
    reason: str,
) -> None:
    server.answers.extend([answer] * 2 * num_tries)
    notifier = make(SlackChannel("training", SLACK, server.url))
    notifier.notify("preempted")
    notifier.notify("resumed")
    notifier.notify("success")
    notifier.close()
    assert len(server.posted) == 2 * num_tries + 1
    assert problems == [f"not everything reaches Slack channel 'training': {reason}. The job goes on without it."]


def test_a_redirect_does_not_take_the_authorization_elsewhere(
    make_server: Callable[[], MessageServer], make: Callable[..., Notifier]
) -> None:
    server, elsewhere = make_server(), make_server()
    server.answers.append(Answer(307, headers={"Location": elsewhere.url}))
    notifier = make(Webhook("webhook 'hook'", server.url, "Bearer hunter2"))
    notifier.notify("success")
    notifier.close()
    assert (len(server.posted), elsewhere.posted) == (1, [])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{free_port}/hunter2", "it cannot be reached (Connection refused)"),
        ("file:///etc/hunter2", "its address does not start with http:// or https://"),
        ("http://127.0.0.1:{free_port}/hunter2 hunter2", "the request cannot be made (InvalidURL)"),
        ("http://127.0.0.1:{free_port}/hünter2", "the request cannot be made (UnicodeEncodeError)"),
    ],
)
def test_a_server_that_is_not_there_is_told_without_its_secret_address(
    make: Callable[..., Notifier], problems: list[str], url: str, reason: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        notifier = make(Webhook("webhook 'hook'", url.format(free_port=free.getsockname()[1])))
        notifier.notify("success")
        notifier.close()
    assert problems == [f"not everything reaches webhook 'hook': {reason}. The job goes on without it."]


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"."),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"."),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "headers", "answers that promise another one"],
)
def test_a_server_that_drips_its_answer_is_not_waited_for(record: JobRecord, beginning: bytes, drop: bytes) -> None:
    told = threading.Event()
    problems: list[str] = []

    def note(problem: str) -> None:
        problems.append(problem)
        told.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        webhook = Webhook("webhook 'hook'", f"http://127.0.0.1:{listener.getsockname()[1]}")
        notifier = Notifier(record, [webhook], note, timeout_s=0.3, retry_delays_s=())
        notifier.notify("success")
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # It is hung up, as it should be.
            connection.sendall(beginning)
            while not told.wait(0.01):
                connection.sendall(drop)
        notifier.close()
    assert problems == [
        "not everything reaches webhook 'hook': it did not answer within 0.3 s. The job goes on without it."
    ]


def test_a_message_is_delivered_though_its_answer_is_a_long_page(
    make_server: Callable[[], MessageServer], make: Callable[..., Notifier], problems: list[str]
) -> None:
    server = make_server()
    server.answers.append(Answer(body="<p>" * 100_000))
    notifier = make(Webhook("webhook 'hook'", server.url))
    notifier.notify("success")
    notifier.close()
    assert (len(server.posted), problems) == (1, [])


def test_a_silent_server_delays_neither_the_job_nor_another_receiver(
    make_server: Callable[[], MessageServer],
    make: Callable[..., Notifier],
    problems: list[str],
    wait_until: Callable[..., None],
) -> None:
    silent, other = make_server(), make_server()
    silent.speaks.clear()
    notifier = make(Webhook("webhook 'silent'", silent.url), Webhook("webhook 'other'", other.url), close_timeout_s=0.1)
    for _ in range(3):
        notifier.notify("resumed")
    wait_until(lambda: len(other.posted) == 3 and len(silent.posted) == 1)
    # The silent server still holds the first message when close() comes back.
    notifier.close()
    notifier.close()
    assert problems == [
        "not everything reaches webhook 'silent': some were not sent before the job ended. The job goes on without it."
    ]
    notifier.notify("success")
    assert (len(silent.posted), len(other.posted)) == (1, 3)


def test_when_too_many_messages_wait_the_newest_are_kept(
    server: MessageServer, make: Callable[..., Notifier], wait_until: Callable[..., None]
) -> None:
    server.speaks.clear()
    notifier = make(Webhook("webhook 'hook'", server.url))
    notifier.notify("resumed", step=0)
    wait_until(lambda: len(server.posted) == 1)
    for step in range(1, MAX_WAITING_MESSAGES + 11):
        notifier.notify("resumed", step=step)
    server.speaks.set()
    notifier.close()
    assert [document["step"] for document in server.documents] == [0, *range(11, MAX_WAITING_MESSAGES + 11)]


def test_a_problem_that_cannot_be_written_down_is_let_go(record: JobRecord) -> None:
    def refuse(problem: str) -> None:
        raise OSError("disk full")

    plugin = PluginSpec.model_validate({"webhook": {"credential_id": "missing"}})
    assert make_notifier(plugin, record, refuse) is None
    notifier = Notifier(record, [Webhook("webhook 'hook'", "file:///")], refuse, **QUICK)
    notifier.notify("success")
    notifier.notify("success")
    notifier.close()
