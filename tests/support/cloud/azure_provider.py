"""Azure of the box: ``python -m support.cloud.azure_provider STATE_DIR REGION``, in the bridge's network.

Azure Resource Manager answers over TLS at the bridge's address; a VM that it says is there is a virtual machine. The
authority of its certificate is STATE_DIR/box-ca.pem. Beside it is moto's S3, which stands for storage of any cloud. An
instance's id is its VM's name. A VM whose notice is acknowledged goes at once. Its lines are those of ``Provider``,
where the texts of a call are its method, its path and the parameters of its deployment or its body, and:
    {"do": "fail", ..., "part": "vm", "status": S}  with the part "vm", the VMs of the deployment do not come, and what
                                                    they need stays behind; otherwise the call is refused at once
    {"do": "calls", "match": [TEXT...]}             every call so far that has all these texts
    {"do": "resources"}                             everything that exists, of any kind
    {"do": "remove", "resource_id": ID}             delete a resource, as its owner
    {"do": "leak", "group": G, "name": N}           a disk, an address and a network interface, as a lost VM N leaves
                                                    them
    {"do": "restrict", "size": S, "zones": [Z...]}  the subscription may not use a size in these zones; null for all
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from support.cloud.access import AUTHORITY, AZURE_HOSTS
from support.cloud.arm_messages import ENDPOINT_HOST, SUBSCRIPTION_ID, Answer, ArmError, Call
from support.cloud.certificates import write_certificates
from support.cloud.metadata import ACKNOWLEDGED, NOTICE, VM
from support.cloud.provider import Provider, write_bashrc
from support.cloud.resource_manager import ResourceManager
from support.cloud.virtual_machines import AWS_ENVIRONMENT, AWS_PORT, PROVIDER_ADDRESS, VirtualMachine

_HTTPS_PORT = 443
_TOKEN = "principal-"
_UNAUTHENTICATED = Answer(
    401,
    {
        "error": {
            "code": "AuthenticationFailed",
            "message": "Authentication failed. The 'Authorization' header is missing.",
        }
    },
)


@dataclass
class _Fault:
    match: list[str]
    code: str
    num_left: int
    part: str
    status: int

    def take(self, part: str, text: str) -> ArmError | None:
        """The refusal of a call with this text; None if it is another one, or none is left."""
        if part != self.part or self.num_left == 0 or not all(each in text for each in self.match):
            return None
        self.num_left -= 1
        return ArmError(self.status, self.code, f"the box says {self.code}")


class Api:
    """A resource manager whose calls can be made to fail; any thread may call it."""

    def __init__(self, region: str) -> None:
        self.manager = ResourceManager(region, self._refuse_vm)
        self.lock = threading.RLock()
        self.calls: list[dict[str, Any]] = []
        self._faults: list[_Fault] = []

    def fail(self, fault: _Fault) -> None:
        with self.lock:
            self._faults.append(fault)

    def heal(self) -> None:
        with self.lock:
            self._faults.clear()

    def answer(self, call: Call) -> Answer:
        """What the manager answers, unless the call is to fail."""
        with self.lock:
            text = _text_of(call.method, call.path, call.parameters or call.body)
            self.calls.append({"method": call.method, "path": call.path, "principal": call.principal, "text": text})
            refusal = self._find_fault("call", text)
            if refusal is not None:
                return Answer(refusal.status, {"error": refusal.describe()})
            try:
                return self.manager.answer(call)
            except Exception:
                # The client is told at once, and does not try again as it would after an answer of another kind.
                return Answer(400, {"error": {"code": "BoxFailed", "message": traceback.format_exc()}})

    def _refuse_vm(self, vm_id: str, parameters: Mapping[str, Any]) -> ArmError | None:
        return self._find_fault("vm", _text_of("PUT", vm_id, parameters))

    def _find_fault(self, part: str, text: str) -> ArmError | None:
        return next((found for fault in self._faults if (found := fault.take(part, text)) is not None), None)


class AzureProvider(Provider):
    """VMs as Azure Resource Manager has them."""

    def __init__(self, state_dir: Path, region: str) -> None:
        super().__init__(state_dir)
        self._region = region
        self._api = Api(region)

    def start_api(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(write_certificates(self._state_dir / AUTHORITY, ENDPOINT_HOST))
        server = _Server((PROVIDER_ADDRESS, _HTTPS_PORT), self._api, context)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        moto = DomainDispatcherApplication(create_backend_app)
        storage = make_server(PROVIDER_ADDRESS, AWS_PORT, moto, threaded=True)
        threading.Thread(target=storage.serve_forever, daemon=True).start()

    def find_wanted(self) -> dict[str, Any]:
        for name, machine in self._machines.items():
            # Azure does not wait for the announced time then.
            if (machine.metadata_dir / ACKNOWLEDGED).exists() and self._find_vm(name) is not None:
                self._evict(name)
        return {vm["name"]: vm for vm in self._list_vms() if vm["state"] == "running"}

    def boot(self, machine_id: str, description: dict[str, Any]) -> VirtualMachine:
        vm = {
            "name": machine_id,
            "location": self._region,
            "vmSize": description["type"],
            "subscriptionId": SUBSCRIPTION_ID,
            "resourceGroupName": description["id"].split("/")[4],
            # Like the real service, which needs to be told whose token if a VM has several identities.
            "token": _TOKEN + description["principals"][0] if len(description["principals"]) == 1 else None,
        }
        return VirtualMachine(
            self._state_dir / machine_id,
            cloud="azure",
            name=machine_id,
            address=description["address"],
            public_address=description["public_address"],
            public_key=description["public_key"],
            image={
                AUTHORITY: (self._state_dir / AUTHORITY).read_text(),
                ".bashrc": write_bashrc(REQUESTS_CA_BUNDLE=f"$HOME/{AUTHORITY}", **AWS_ENVIRONMENT),
            },
            metadata={VM: json.dumps(vm)},
            hosts=AZURE_HOSTS,
        )

    def _list_vms(self) -> list[dict[str, Any]]:
        with self._api.lock:
            return self._api.manager.resources.list_vms()

    def _find_vm(self, name: str) -> dict[str, Any] | None:
        return next((vm for vm in self._list_vms() if vm["name"] == name), None)

    def _evict(self, name: str) -> None:
        with self._api.lock:
            self._api.manager.resources.evict(name)

    def _do_machines(self) -> list[dict[str, Any]]:
        kept = ("type", "state", "address", "public_address", "is_spot", "zones", "tags")
        return [{"instance": vm["name"], **{key: vm[key] for key in kept}} for vm in self._list_vms()]

    def _do_resources(self) -> list[dict[str, Any]]:
        with self._api.lock:
            return self._api.manager.list_resources()

    def _do_fail(self, match: list[str], code: str, num_times: int, part: str = "call", status: int = 409) -> None:
        self._api.fail(_Fault(match, code, num_times, part, status))

    def _do_heal(self) -> None:
        self._api.heal()

    def _do_calls(self, match: list[str]) -> list[dict[str, Any]]:
        with self._api.lock:
            return [call for call in self._api.calls if all(part in call["text"] for part in match)]

    def _do_quota(self, code: str, vcpus: int) -> None:
        with self._api.lock:
            self._api.manager.resources.offers.limits[code] = vcpus

    def _do_restrict(self, size: str, zones: list[str] | None) -> None:
        with self._api.lock:
            self._api.manager.resources.offers.restricted[size] = None if zones is None else tuple(zones)

    def _do_leak(self, group: str, name: str) -> None:
        base = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{group}/providers"
        address_id = f"{base}/Microsoft.Network/publicIPAddresses/{name}-ip0"
        configuration = {"name": "leaked", "properties": {"publicIPAddress": {"id": address_id}}}
        for resource_id, properties in {
            address_id: {"publicIPAllocationMethod": "Static"},
            f"{base}/Microsoft.Network/networkInterfaces/{name}-nic-public0": {"ipConfigurations": [configuration]},
            f"{base}/Microsoft.Compute/disks/{name}-disk0": {
                "diskSizeGB": 200,
                "creationData": {"createOption": "Empty"},
            },
        }.items():
            answer = self._api.answer(Call("PUT", resource_id, {"location": self._region, "properties": properties}))
            assert answer.status == 201, answer

    def _do_remove(self, resource_id: str) -> None:
        answer = self._api.answer(Call("DELETE", resource_id))
        assert answer.status in (200, 204), answer

    def _do_notice(self, instance: str, notice_s: float) -> None:
        notice = self._machines[instance].metadata_dir / NOTICE
        notice.write_text(formatdate(time.time() + notice_s, usegmt=True))

    def _do_lose(self, instance: str) -> None:
        self.take_power(instance, lambda: self._evict(instance))


def _text_of(method: str, path: str, content: Mapping[str, Any]) -> str:
    return f"{method} {path} {json.dumps(content)}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], api: Api, context: ssl.SSLContext) -> None:
        super().__init__(address, _Handler)
        self.api = api
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, so that a client that says nothing holds up nobody else."""
        with self._context.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for each answer; a second one would wait 40 ms for the first one's acknowledgement.
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer = _UNAUTHENTICATED
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and token.startswith(_TOKEN):
            call = Call(self.command, self.path, json.loads(body) if body else {}, token.removeprefix(_TOKEN))
            answer = self.server.api.answer(call)
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """Serve until standard input ends."""
    AzureProvider(Path(sys.argv[1]), sys.argv[2]).serve()


if __name__ == "__main__":
    main()
