"""The image of a template: its name, and the options that its container may have. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from periflow_ray.spec.fields import quote, read_text, refuse

# As Docker and Podman have it: https://pkg.go.dev/github.com/distribution/reference
_HOST = r"(?:localhost|\[[0-9a-fA-F:]+\]|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?=:[0-9]+/))(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
    r"|sha256:[0-9a-f]{64}"
)
_FLAGS = "ditPq"
# Each container gets these from the job, or would not end with its command.
_REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("-d", "--detach"), "nobody would wait for the command"),
    (("-i", "--interactive", "-t", "--tty", "-a", "--attach"), "nobody types, and all of the output is the job's log"),
    (("--name", "--replace", "--cidfile", "--pidfile", "--pod"), "each attempt has a container of its own"),
    (("--entrypoint", "--rootfs"), "docker.image and docker.command say what runs"),
    (("-u", "--user", "--userns"), "the command runs as the user by whom its files can be saved and removed"),
    (("--network", "--net"), "the command has the node's network"),
    (("-w", "--workdir"), "the command begins in the workspace; it may begin with 'cd'"),
    (("--init", "--pid", "--sig-proxy"), "the container's first process passes signals on and ends what is left"),
    (("--restart",), "restarts are the job's own; see max_failures"),
    (("--pull",), "an image that the node has is used, and another one is fetched"),
    (("--help",), "the command would not run"),
)


def read_image_name(value: object) -> str:
    """The name of an image, with its registry, tag and digest where it has them."""
    text = read_text(value)
    if not _NAME.fullmatch(text):
        raise refuse(
            f"is {quote(text)}; it must be the name of an image, such as 'pytorch/pytorch:2.6.0' or "
            "'registry.example.com:5000/team/trainer@sha256:...', in lower case up to its tag"
        )
    return text


def find_bad_option(options: Sequence[str]) -> str | None:
    """Why a job's container cannot have such options, by the first one at fault; None where it can."""
    for index, option in enumerate(options):
        before = options[index - 1] if index else ""
        if not option.startswith("-"):
            if not _takes_next_word(before):
                return f"is {quote(option)}, which is no option; options begin with '-', such as --memory=64g"
            continue
        name = option.partition("=")[0]
        if name.strip("-") == "" or len(name.split()) > 1:
            return f"is {quote(option)}; write an option and its value as one word: --memory=64g"
        for names, reason in _REFUSED:
            if not names_of(option).isdisjoint(names):
                return f"has {quote(option)}, which a job's container cannot have: {reason}. Leave it out"
    return None


def names_of(option: str) -> set[str]:
    """The options that a word has: ``-dit`` has three."""
    if option.startswith("--"):
        return {option.partition("=")[0]}
    found = set()
    for letter in option[1:]:
        found.add(f"-{letter}")
        if letter not in _FLAGS:
            break
    return found


def _takes_next_word(option: str) -> bool:
    return "=" not in option if option.startswith("--") else len(option) == 2 and option[0] == "-"


ImageName = Annotated[str, BeforeValidator(read_image_name), WithJsonSchema({"type": "string", "pattern": r"\S"})]
