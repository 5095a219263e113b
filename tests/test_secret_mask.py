"""Secrets are hidden in every form in which programs commonly print them, wherever a text is cut."""

from __future__ import annotations

import base64
import html
import json
import shlex
import subprocess
from urllib.parse import quote, quote_plus, urlencode

import pytest

from periflow_ray.secret_mask import SecretMask, can_be_masked, guess_secrets

AWKWARD = "p@ss\"w\\ord/+ %é'$&<x"
PEM = (
    "-----BEGIN KEY-----\n" + "\n".join(chr(65 + i) * 3 + "9/x+" * 15 for i in range(5)) + "\nQ2w=\n-----END KEY-----\n"
)


@pytest.mark.parametrize(
    "show",
    [
        str,
        json.dumps,
        lambda value: json.dumps(value, ensure_ascii=False),
        lambda value: json.dumps({"body": json.dumps({"token": value})}),
        repr,
        lambda value: repr(value.encode()),
        quote,
        lambda value: quote(value, safe=""),
        quote_plus,
        lambda value: quote(value, safe="").lower() if value.islower() else urlencode({"q": value}),
        html.escape,
        shlex.quote,
        lambda value: (
            subprocess.run(
                ["bash", "-c", 'printf %q "$1"', "bash", value],
                capture_output=True,
                text=True,
                env={"LC_ALL": "C.UTF-8"},
            ).stdout
        ),
        lambda value: value.encode().hex(),
    ],
)
@pytest.mark.parametrize("secret", [AWKWARD, "s3cr3t/key+more", "ключ-от-всего", "plain0123456789", "four"])
def test_a_secret_is_found_as_programs_show_it(show, secret):
    shown = SecretMask([secret]).apply(f"before {show(secret)} after")
    beginning, end = shown.split("***")
    assert beginning.startswith("before ")
    assert end.endswith(" after")
    # The longest surroundings are those of the JSON text inside a JSON text.
    assert len(beginning + end) <= 42


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "x-access-token:"])
@pytest.mark.parametrize("after", ["", "\n", "!", ":end"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("secret", ["hunter2-and-more?>", "ghp_0123456789abcdefABCDEF"])
def test_a_secret_inside_base64_is_found_at_every_alignment(before, after, encode, secret):
    text = encode(f"{before}{secret}{after}".encode()).decode()
    shown = SecretMask([secret]).apply(f"Authorization: Basic {text}")
    assert "***" in shown
    # At most the characters that it shares with its neighbours are left of it.
    assert len(shown.removeprefix("Authorization: Basic ")) <= 3 + 4 + len(encode((before + after + "xx").encode()))


@pytest.mark.parametrize("width", [64, 76])
def test_base64_over_several_lines_is_hidden_on_each(width):
    encoded = base64.b64encode(PEM.encode()).decode()
    mask = SecretMask([PEM])
    for start in range(0, len(encoded) - width, width):
        assert mask.apply(encoded[start : start + width]) == "***"


def test_each_line_of_a_secret_of_several_lines_is_hidden():
    mask = SecretMask([PEM])
    assert [mask.apply(line) for line in PEM.splitlines()] == ["***"] * 8
    assert [mask.apply(f"  key: {line}\r") for line in PEM.splitlines()] == ["  key: ***\r"] * 8
    assert mask.apply(f"{PEM!r}") == "'***'"


def test_the_secret_fields_of_a_json_document_are_hidden_by_themselves():
    account = {
        "type": "service_account",
        "project": "demo",
        "private_key": PEM,
        "client": [{"client_secret": "xyz123"}],
    }
    mask = SecretMask([json.dumps(account, indent=2)])
    assert mask.apply(f"got {account['project']} xyz123") == "got demo ***"
    assert "9/x+" not in "".join(map(mask.apply, PEM.splitlines()))
    assert "9/x+" not in mask.apply(json.dumps(account))


@pytest.mark.parametrize("order", [1, -1])
def test_of_secrets_with_a_common_beginning_nothing_is_left(order):
    mask = SecretMask(["hf_abc", "hf_abcdef123456"][::order])
    assert mask.apply("hf_abcdef123456 hf_abc hf_abcd") == "*** *** ***d"
    # Nor of two that overlap.
    assert SecretMask(["abcdef", "defghi"][::order]).apply("-abcdefghi-") == "-***-"


def test_what_is_too_short_is_no_secret_and_masks_nothing():
    assert [can_be_masked(secret) for secret in ("", "abc", " abc\n", "a\nb\nc\nd", "four", "a\nlonger")] == (
        [False] * 4 + [True] * 2
    )
    text = "a b c abc {\n}"
    assert SecretMask(["", "a", "abc", "a\nb\nc\nd"]).apply(text) == text
    assert SecretMask(['{\n  "password": "hunter2"\n}']).apply("{ } hunter2") == "{ } ***"


@pytest.mark.parametrize("at", range(40))
def test_a_text_is_never_cut_through_a_secret(at):
    mask = SecretMask(["hunter2", "hunter2-and-more"])
    text = "." * at + "hunter2-and-more" + "." * (40 - at)
    first, rest = mask.cut(text, 20)
    assert first + mask.apply(rest) == "." * at + "***" + "." * (40 - at)
    assert len(first) <= 20


def test_a_text_that_is_all_secret_ends():
    mask = SecretMask(["aaaa"])
    first, rest = mask.cut("a" * 1000, 20)
    assert (first, rest) == ("***", "")


def test_masking_a_text_without_secrets_gives_it_back():
    text = "step 1 loss 2.5" * 100
    assert SecretMask(["hunter2"]).apply(text) is text
    assert SecretMask().apply(text) is text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GITHUB_TOKEN", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
        ("HF_TOKEN", "hf_FpZXqWmnBvKjLoPqRsTuVwXyZaBcDeFgHi"),
        ("OPENAI_API_KEY", "sk-proj-AbC123dEf456GhI789"),
        ("API_TOKEN", "123e4567-e89b-12d3-a456-426614174000"),
        ("SIGNING_KEY", "/9j+Zb3Kd8Qw7Lm2Xc4Vt5"),
        ("MY_PASSWORD", "hunter2isgreat"),
        ("MY_PASSWORD", "correct horse battery"),
    ],
)
def test_a_variable_that_is_called_like_a_secret_and_looks_like_one_is_a_secret(name, value):
    assert guess_secrets({name: value, "HOME": value}) == [value]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MY_PASSWORD", "hunter2"),
        ("PASSWORD_MODE", "authentication"),
        ("KEY_COLUMN", "customer_identifier"),
        ("TOKEN_MODEL", "meta-llama/Llama-3-8B"),
        ("IMAGE_KEY", "image_224x224"),
        ("MAX_TOKENS", "123456789012"),
        ("TOKEN_TYPE", "DistributedTraining"),
        ("TOKEN_FILE", "/run/secrets/hf-token-2024a1b2c3"),
        ("SSH_KEY", "~/.ssh/id_ed25519"),
        ("API_KEY_URL", "https://api.example.com/v1beta3/chat"),
        ("TOKENIZERS_PARALLELISM", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
    ],
)
def test_settings_of_such_names_are_no_secrets(name, value):
    assert guess_secrets({name: value}) == []
