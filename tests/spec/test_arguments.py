"""Keys of the template as arguments in Python: the same rules, and the same words for what is wrong."""

from __future__ import annotations

import pytest

from periflow_ray.errors import UsageError
from periflow_ray.spec import PluginSpec, SlackPlugin, WandbPlugin, WebhookPlugin, parse_arguments


def test_arguments_are_what_the_template_says_in_its_sections() -> None:
    arguments = parse_arguments(
        plugin={
            "slack": {"channel": "training", "credential_id": "our-slack"},
            "webhook": {"url": "https://hooks.example.com/training"},
            "wandb": {"credential_id": "our-wandb"},
        },
        env_var={"WANDB_ENTITY": "our-team", "NUM_WORKERS": 4},
    )
    assert arguments.plugin == PluginSpec(
        slack=SlackPlugin(channel="training", credential_id="our-slack"),
        webhook=WebhookPlugin(url="https://hooks.example.com/training"),
        wandb=WandbPlugin(credential_id="our-wandb"),
    )
    assert arguments.env_var == {"WANDB_ENTITY": "our-team", "NUM_WORKERS": "4"}


def test_a_webhook_with_an_address_of_its_own_names_no_credential() -> None:
    plugin = parse_arguments(
        plugin={
            "slack": {"channel": "training", "credential_id": "our-slack"},
            "webhook": {"url": "https://hooks.example.com/training"},
            "wandb": {"credential_id": "our-wandb"},
        },
        env_var=None,
    ).plugin
    assert plugin is not None
    assert plugin.credentials == {"plugin.slack": ("slack", "our-slack"), "plugin.wandb": ("wandb", "our-wandb")}


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_is_nothing(nothing: object) -> None:
    arguments = parse_arguments(plugin=nothing, env_var=nothing)
    assert (arguments.plugin or PluginSpec(), arguments.env_var) == (PluginSpec(), {})


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("slack", "plugin is the text 'slack'; it must be a mapping with the keys slack, webhook, wandb"),
        (
            {"slak": {"channel": "c"}},
            "unknown key 'slak' in plugin. Did you mean 'slack'? Allowed: slack, webhook, wandb",
        ),
        (
            {"slack": {"channel": "c"}},
            "plugin.slack.credential_id is missing; it is required: Credential of type slack.",
        ),
        (
            {"webhook": {"url": "https://a.example", "credential_id": "hook"}},
            "plugin.webhook has both of 'url' and 'credential_id'; it must have exactly one of them",
        ),
        ({"wandb": {"credential_id": True}}, "plugin.wandb.credential_id is true (a boolean); it must be text"),
    ],
)
def test_a_plugin_that_a_template_may_not_have_is_refused(plugin: object, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(plugin=plugin, env_var=None)
    assert str(caught.value) == problem


def test_all_problems_come_at_once_under_the_names_of_the_arguments() -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(
            plugin={"slack": {"channel": "", "credential_id": "our-slack"}},
            env_var={"1ST": "x", "NESTED": {"a": "b"}, "EMPTY": None},
        )
    assert sorted(str(caught.value).splitlines()) == [
        "env_var.1ST is not a valid environment variable name: use letters, digits and underscores, and no digit first",
        "env_var.EMPTY has no value; write '' for an empty one",
        "env_var.NESTED is a mapping; it must be text, a number or a boolean",
        "plugin.slack.channel is empty; it must be text",
    ]


def test_variables_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(plugin=None, env_var=["A=1"])
    assert str(caught.value) == "env_var is a list; it must be a mapping with names and values"
