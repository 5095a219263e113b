"""EC2, IAM and S3 of the box: ``python -m support.cloud.aws_provider STATE_DIR REGION``, in the bridge's network.

The API is moto's; an instance that it says is there is a virtual machine. Its lines are those of ``Provider``, and:
    {"do": "actions"}                               who did what: address and "ec2:RunInstances"
    {"do": "hang", "match": [TEXT...], "num_times": N}
                                                    the next calls that have all these texts get no answer
    {"do": "cut", "match": [TEXT...], "num_times": N}
                                                    their connection ends without one
    {"do": "scarce", "is_scarce": IS}               a request for several instances gets one of them
    {"do": "calls", "action": A}                    every call of an action so far
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from support.cloud.provider import Provider, write_bashrc
from support.cloud.virtual_machines import AWS_ENVIRONMENT, AWS_PORT, PROVIDER_ADDRESS, VirtualMachine
from support.metadata_servers import format_aws_time

_USUAL_QUOTA_VCPUS = 1_000.0
# Longer than a client may wait.
_HANG_S = 60.0
# Amazon keeps the newest image's id under names below it.
_IMAGES = "/aws/service/deeplearning/ami/"
_JSON_CALLS = {
    "AmazonSSM.GetParameters": "_answer_parameters",
    "ServiceQuotasV20190624.GetServiceQuota": "_answer_quota",
}
_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message>'
    "</Error></Errors><RequestID>box</RequestID></Response>"
)
_Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class _Fault:
    match: list[str]
    num_left: int
    answer: _Answer


class Api:
    """moto as a WSGI application whose calls can be made to fail, with images and quotas, which moto does not know.

    ``quotas`` are in vCPUs, by their codes. ``gives_least``: EC2 has no more instances than a request needs.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._faults: list[_Fault] = []
        self.calls: list[dict[str, str]] = []
        self.quotas: dict[str, float] = {}
        self.gives_least = False
        # Who did what, as IAM's policies name it: an address, and "ec2:RunInstances". Of S3 nothing is noted.
        self.actions: set[tuple[str, str]] = set()

    def fail(self, match: list[str], code: str, num_times: int) -> None:
        self.mistreat(match, num_times, _refuse(code))

    def mistreat(self, match: list[str], num_times: int, answer: _Answer) -> None:
        self._faults.append(_Fault(match, num_times, answer))

    def heal(self) -> None:
        self._faults.clear()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self._note_action(environ)
        answer = getattr(self, _JSON_CALLS.get(environ.get("HTTP_X_AMZ_TARGET", ""), ""), None)
        if answer is not None:
            question = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
            return [json.dumps(answer(question)).encode()]
        # Only the calls of EC2 and IAM; what S3 is sent may have no length.
        if "x-www-form-urlencoded" not in environ.get("CONTENT_TYPE", ""):
            return self._moto(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        text = body.decode()
        if "Action=RunInstances" in text and not self.gives_least:
            # moto gives the least number that is asked for, where EC2 gives the most that it has.
            text = text.replace("MinCount=1&", f"MinCount={urllib.parse.parse_qs(text)['MaxCount'][0]}&")
            environ["wsgi.input"] = io.BytesIO(text.encode())
            environ["CONTENT_LENGTH"] = str(len(text))
        call = dict(urllib.parse.parse_qsl(text))
        self.calls.append(call)
        self.actions.add((environ["REMOTE_ADDR"], f"{_find_service(environ)}:{call['Action']}"))
        for fault in self._faults:
            if fault.num_left > 0 and all(part in text for part in fault.match):
                fault.num_left -= 1
                return fault.answer(environ, start_response)
        return self._moto(environ, start_response)

    def _note_action(self, environ: dict[str, Any]) -> None:
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if target:
            action = target.rpartition(".")[2]
            self.actions.add((environ["REMOTE_ADDR"], f"{_find_service(environ)}:{action}"))

    def _answer_parameters(self, question: dict[str, Any]) -> dict[str, Any]:
        known = [name for name in question["Names"] if name.startswith(_IMAGES)]
        return {
            "Parameters": [{"Name": name, "Value": "ami-0123456789abcdef0"} for name in known],
            "InvalidParameters": [name for name in question["Names"] if name not in known],
        }

    def _answer_quota(self, question: dict[str, Any]) -> dict[str, Any]:
        code = question["QuotaCode"]
        return {"Quota": {"QuotaCode": code, "Value": self.quotas.get(code, _USUAL_QUOTA_VCPUS)}}


def _refuse(code: str) -> _Answer:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("400 Bad Request", [("Content-Type", "text/xml")])
        return [_ERROR.format(code=code, message=f"the box says {code}").encode()]

    return answer


def _hang(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    time.sleep(_HANG_S)
    return _cut(environ, start_response)


def _cut(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    with contextlib.suppress(OSError):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [])
    return []


def _find_service(environ: Mapping[str, Any]) -> str:
    """As the request's signature names it."""
    found = re.search(r"Credential=[^/]+/[^/]+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return "" if found is None else found[1]


class AwsProvider(Provider):
    """Instances as EC2 has them."""

    def __init__(self, state_dir: Path, region: str) -> None:
        super().__init__(state_dir)
        self._region = region
        self._api = Api()
        self._ec2 = boto3.client("ec2", region)

    def start_api(self) -> None:
        server = make_server(PROVIDER_ADDRESS, AWS_PORT, self._api, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def find_wanted(self) -> dict[str, Any]:
        return {
            instance["InstanceId"]: instance
            for instance in self._instances()
            if instance["State"]["Name"] in ("pending", "running")
        }

    def boot(self, machine_id: str, description: dict[str, Any]) -> VirtualMachine:
        keys = self._ec2.describe_key_pairs(KeyNames=[description["KeyName"]], IncludePublicKey=True)["KeyPairs"]
        address = description["PrivateIpAddress"]
        return VirtualMachine(
            self._state_dir / machine_id,
            cloud="aws",
            name=f"ip-{address.replace('.', '-')}",
            address=address,
            public_address=description.get("PublicIpAddress"),
            public_key=keys[0]["PublicKey"],
            image={
                # A role's credentials would come from the metadata service.
                ".aws/config": _aws_config(self._region),
                ".bashrc": write_bashrc(),
            },
        )

    def _instances(self) -> list[dict[str, Any]]:
        return [
            instance
            for reservation in self._ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
        ]

    def _do_machines(self) -> list[dict[str, Any]]:
        return [
            {
                "instance": instance["InstanceId"],
                "type": instance["InstanceType"],
                "state": instance["State"]["Name"],
                "address": instance.get("PrivateIpAddress"),
                "is_spot": instance.get("InstanceLifecycle") == "spot",
                "tags": {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])},
            }
            for instance in self._instances()
        ]

    def _do_fail(self, match: list[str], code: str, num_times: int) -> None:
        self._api.fail(match, code, num_times)

    def _do_hang(self, match: list[str], num_times: int) -> None:
        self._api.mistreat(match, num_times, _hang)

    def _do_cut(self, match: list[str], num_times: int) -> None:
        self._api.mistreat(match, num_times, _cut)

    def _do_calls(self, action: str) -> list[dict[str, str]]:
        return [call for call in self._api.calls if call.get("Action") == action]

    def _do_quota(self, code: str, vcpus: float) -> None:
        self._api.quotas[code] = vcpus

    def _do_actions(self) -> list[tuple[str, str]]:
        return sorted(self._api.actions)

    def _do_heal(self) -> None:
        self._api.heal()

    def _do_scarce(self, is_scarce: bool) -> None:
        self._api.gives_least = is_scarce

    def _do_notice(self, instance: str, notice_s: float) -> None:
        document = {"action": "terminate", "time": format_aws_time(time.time() + notice_s)}
        (self._machines[instance].metadata_dir / "notice").write_text(json.dumps(document))

    def _do_lose(self, instance: str) -> None:
        self.take_power(instance, lambda: self._ec2.terminate_instances(InstanceIds=[instance]))


def _aws_config(region: str) -> str:
    endpoint, key_id, key = (
        AWS_ENVIRONMENT[f"AWS_{name}"] for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    )
    keys = f"aws_access_key_id = {key_id}\naws_secret_access_key = {key}\n"
    return f"[default]\nregion = {region}\nendpoint_url = {endpoint}\n{keys}"


def main() -> None:
    """Serve until standard input ends."""
    os.environ.update(AWS_ENVIRONMENT)
    AwsProvider(Path(sys.argv[1]), sys.argv[2]).serve()


if __name__ == "__main__":
    main()
