"""``job_setting.docker``: names of images and options of containers, and those that are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from periflow_ray.spec.models import DockerSpec


def read(image: str = "python", options: tuple[str, ...] = ()) -> DockerSpec:
    return DockerSpec.model_validate({"image": image, "options": options, "command": "true"})


@pytest.mark.parametrize(
    "name",
    [
        "python",
        "pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime",
        "registry.example.com/team/trainer:1.4",
        "Registry.Example.com:5000/a/b/c",
        "localhost/trainer",
        "machine:5000/trainer",
        "127.0.0.1:5000/trainer:1",
        "[::1]:5000/trainer",
        "python@sha256:" + "a" * 64,
        "a/b__c.d-e:X_1@sha256:" + "0" * 64,
        "sha256:" + "f" * 64,
    ],
)
def test_a_name_that_engines_know_is_taken(name: str) -> None:
    assert read(name).image == name


@pytest.mark.parametrize(
    "name",
    ["Python", "a b", "docker://python", "--privileged", "python:", "python:a:b", "a//b", "python@sha256:1"],
)
def test_a_name_that_no_engine_knows_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="it must be the name of an image, such as"):
        read(name)


@pytest.mark.parametrize(
    "options",
    [
        ("--memory=64g", "--cap-add=SYS_PTRACE"),
        ("--memory", "64g", "-v", "/data:/data", "-e", "A=b c"),
        ("--ipc=host", "--privileged", "--rm", "--read-only"),
        ("-v/data:/data", "--env=A= b"),
        ("--pids-limit=100",),
    ],
)
def test_other_options_are_the_engines(options: tuple[str, ...]) -> None:
    assert read(options=options).options == options


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("-d", "nobody would wait for the command"),
        ("--detach=true", "nobody would wait for the command"),
        ("-dit", "nobody would wait for the command"),
        ("-it", "nobody types"),
        ("--name=mine", "each attempt has a container of its own"),
        ("--entrypoint=/bin/sh", "docker.image and docker.command say what runs"),
        ("-u1000", "the command runs as the user by whom its files can be saved"),
        ("--user", "the command runs as the user by whom its files can be saved"),
        ("--network=none", "the command has the node's network"),
        ("--workdir=/data", "the command begins in the workspace"),
        ("--init", "the container's first process passes signals on"),
        ("--pid=host", "the container's first process passes signals on"),
        ("--restart=always", "restarts are the job's own"),
    ],
)
def test_an_option_that_breaks_a_promise_is_refused(option: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=f"has '{option}', which a job's container cannot have: {reason}"):
        read(options=("--memory=1g", option))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("64g",), "is '64g', which is no option"),
        (("--memory=64g", "ubuntu"), "is 'ubuntu', which is no option"),
        (("--memory 64g",), "write an option and its value as one word: --memory=64g"),
        (("--",), "write an option and its value as one word: --memory=64g"),
    ],
)
def test_a_word_that_an_engine_would_take_for_the_image_is_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read(options=options)
