"""The types of credential, and what each of them is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from periflow_ray.errors import UsageError
from periflow_ray.names import suggest_names
from periflow_ray.secret_mask import guess_secrets
from periflow_ray.urls import judge_http_url


@dataclass(frozen=True)
class CredentialValue:
    """One value of a credential.

    ``variables`` are the environment variables in which people usually have it, the most usual one first.
    A document is JSON text; people have it in a file, and its variable holds the path of that file.
    """

    name: str
    variables: tuple[str, ...]
    is_secret: bool = True
    is_url: bool = False
    is_document: bool = False


@dataclass(frozen=True)
class CredentialType:
    """A type of credential.

    ``alternatives`` are sets of value names, of which a credential has exactly one whole set; the first that fits is
    taken where several are at hand. Values in none of them are optional.
    Of a cloud's type, variables that begin with one of ``variable_prefixes`` decide how the cloud is reached; those of
    ``path_variables`` hold the path of a file or directory.
    """

    name: str
    values: tuple[CredentialValue, ...]
    alternatives: tuple[tuple[str, ...], ...]
    variable_prefixes: tuple[str, ...] = ()
    path_variables: frozenset[str] = frozenset()

    @property
    def value_names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.values)

    @property
    def optional_names(self) -> tuple[str, ...]:
        needed = {name for names in self.alternatives for name in names}
        return tuple(name for name in self.value_names if name not in needed)

    @property
    def secret_names(self) -> frozenset[str]:
        return frozenset(value.name for value in self.values if value.is_secret)


CREDENTIAL_TYPES: Mapping[str, CredentialType] = {
    each.name: each
    for each in (
        CredentialType(
            "s3",
            (
                CredentialValue("access_key_id", ("AWS_ACCESS_KEY_ID",), is_secret=False),
                CredentialValue("secret_access_key", ("AWS_SECRET_ACCESS_KEY",)),
                CredentialValue("session_token", ("AWS_SESSION_TOKEN",)),
                CredentialValue("region", ("AWS_REGION", "AWS_DEFAULT_REGION"), is_secret=False),
                CredentialValue(
                    "endpoint_url", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), is_secret=False, is_url=True
                ),
            ),
            (("access_key_id", "secret_access_key"),),
            ("AWS_",),
            frozenset(
                {"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE"}
            ),
        ),
        CredentialType(
            "azure-blob",
            (
                CredentialValue("connection_string", ("AZURE_STORAGE_CONNECTION_STRING",)),
                CredentialValue(
                    "account_name", ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"), is_secret=False
                ),
                CredentialValue("account_key", ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")),
                CredentialValue("sas_token", ("AZURE_STORAGE_SAS_TOKEN",)),
            ),
            (("connection_string",), ("account_name", "account_key"), ("account_name", "sas_token")),
            ("AZURE_",),
            frozenset({"AZURE_CONFIG_DIR", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH"}),
        ),
        CredentialType(
            "gcs",
            (CredentialValue("service_account_json", ("GOOGLE_APPLICATION_CREDENTIALS",), is_document=True),),
            (("service_account_json",),),
            ("GOOGLE_",),
            frozenset({"GOOGLE_APPLICATION_CREDENTIALS"}),
        ),
        CredentialType(
            "docker",
            (
                CredentialValue("username", ("DOCKER_USERNAME",), is_secret=False),
                CredentialValue("password", ("DOCKER_PASSWORD",)),
                CredentialValue("registry", ("DOCKER_REGISTRY",), is_secret=False),
            ),
            (("username", "password"),),
        ),
        CredentialType(
            "slack",
            (
                CredentialValue("token", ("SLACK_BOT_TOKEN", "SLACK_TOKEN")),
                CredentialValue("webhook_url", ("SLACK_WEBHOOK_URL",), is_url=True),
            ),
            (("token",), ("webhook_url",)),
        ),
        CredentialType(
            "webhook",
            (
                # Most such URLs hold a key.
                CredentialValue("url", ("WEBHOOK_URL",), is_url=True),
                CredentialValue("authorization", ("WEBHOOK_AUTHORIZATION",)),
            ),
            (("url",),),
        ),
        CredentialType("wandb", (CredentialValue("api_key", ("WANDB_API_KEY",)),), (("api_key",),)),
    )
}


# Of clouds whose credentials have no type of their own here.
_MORE_SECRET_VARIABLES = ("AZURE_CLIENT_SECRET", "AZURE_PASSWORD", "AZURE_CLIENT_CERTIFICATE_PASSWORD")


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """What an environment has of secrets: keys of clouds and services in the variables in which people usually have
    them, and what other variables say by their names that they hold.
    """
    names = [
        name
        for each in CREDENTIAL_TYPES.values()
        for value in each.values
        if value.is_secret and not value.is_document
        for name in value.variables
    ]
    known = [environ[name] for name in (*names, *_MORE_SECRET_VARIABLES) if environ.get(name)]
    return list(dict.fromkeys([*known, *guess_secrets(environ)]))


def find_credential_type(name: str) -> CredentialType:
    """A type by its name.

    Raises:
        UsageError: there is no such type.
    """
    if name not in CREDENTIAL_TYPES:
        raise UsageError(
            f"credential type '{name}' is unknown.{suggest_names(name, CREDENTIAL_TYPES, cutoff=0.5)} "
            f"Types: {', '.join(CREDENTIAL_TYPES)}"
        )
    return CREDENTIAL_TYPES[name]


def check_values(type_name: str, values: Mapping[str, object]) -> dict[str, str]:
    """The values of a credential, surrounding blanks dropped.

    Raises:
        UsageError: a name is unknown, a value cannot be used, or some are missing; no message repeats a value.
    """
    kind = find_credential_type(type_name)
    checked = {}
    for name, value in values.items():
        if name not in kind.value_names:
            raise UsageError(
                f"a credential of type '{type_name}' has no value '{name}'."
                f"{suggest_names(name, kind.value_names, cutoff=0.5)} Values: {', '.join(kind.value_names)}"
            )
        checked[name] = _check_value(next(each for each in kind.values if each.name == name), value)
    given = tuple(name for name in kind.value_names if name in checked and name not in kind.optional_names)
    if set(given) not in [set(names) for names in kind.alternatives]:
        raise UsageError(
            f"a credential of type '{type_name}' is made of {describe_alternatives(kind)}; "
            f"given: {' and '.join(given) or 'none of them'}."
        )
    return {name: checked[name] for name in kind.value_names if name in checked}


def describe_alternatives(kind: CredentialType) -> str:
    """What a credential of a type needs, in words."""
    return ", or ".join(" and ".join(names) for names in kind.alternatives)


def _check_value(value: CredentialValue, given: object) -> str:
    if value.is_document:
        return _check_document(value, given)
    text = given.strip() if isinstance(given, str) else ""
    if not text or re.search(r"[\x00-\x1f\x7f]", text):
        raise UsageError(f"'{value.name}' must be text on one line, and not empty.")
    if value.is_url:
        _check_url(value, text)
    return text


def _check_url(value: CredentialValue, text: str) -> None:
    judgement = judge_http_url(text)
    if judgement == "unusable":
        raise UsageError(f"'{value.name}' must be a URL that starts with http:// or https://")
    if judgement == "has a login":
        # It is shown by lists and views.
        raise UsageError(f"'{value.name}' must not hold a login; give the keys as values of their own.")


def _check_document(value: CredentialValue, given: object) -> str:
    try:
        document = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("type") != "service_account":
        raise UsageError(
            f'\'{value.name}\' must be the JSON of a service account\'s key: an object with "type": "service_account".'
        )
    return json.dumps(document)
