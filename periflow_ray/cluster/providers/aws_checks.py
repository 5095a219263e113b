"""What is looked at in an AWS account before a cluster is made there."""

from __future__ import annotations

from collections.abc import Iterator

from periflow_ray.cluster.config import aws as config_of_aws
from periflow_ray.cluster.config.render import find_instance_types
from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.cluster.providers.aws_api import AwsApi, told
from periflow_ray.cluster.providers.aws_quotas import find_quota
from periflow_ray.cluster.providers.provider import Finding, ProviderError


class AwsChecks:
    """Looks at credentials, offers, images, permissions and quotas."""

    def __init__(self, api: AwsApi) -> None:
        self._api = api

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        with told("asking who you are", "sts:GetCallerIdentity"):
            identity = self._api.client("sts").get_caller_identity()
        findings = [Finding("credentials", "good", f"account {identity['Account']}, {identity['Arn']}")]
        zones = self._api.find_zones(spec)
        for name, instance_type in find_instance_types(spec).items():
            findings.append(self._check_offer(name, instance_type, zones[instance_type]))
        findings += [self._check_image(architecture) for architecture in sorted({vm.architecture for vm in spec.vms})]
        findings.append(self._check_launch_permission())
        findings += self._check_quotas(spec, is_new=is_new)
        return findings

    def _check_offer(self, name: str, instance_type: str, zones: list[str]) -> Finding:
        if zones:
            return Finding(name, "good", f"{instance_type} is offered in {', '.join(zones)}")
        return Finding(
            name,
            "bad",
            f"{instance_type} is not offered in any zone of {self._api.region}. Choose another: periflow-ray vm list",
        )

    def _check_image(self, architecture: str) -> Finding:
        parameter = config_of_aws.IMAGE.format(architecture=architecture).removeprefix("resolve:ssm:")
        try:
            with told("looking the image up", "ssm:GetParameters"):
                answer = self._api.client("ssm").get_parameters(Names=[parameter])
        except ProviderError as err:
            return Finding("image", "warning", f"could not be looked up: {err}")
        if not answer["Parameters"]:
            return Finding("image", "bad", f"there is no image {parameter} in {self._api.region}")
        return Finding("image", "good", f"{answer['Parameters'][0]['Value']} for {architecture}, {parameter}")

    def _check_launch_permission(self) -> Finding:
        try:
            vpc_id = self._api.find_vpc()
        except ProviderError as err:
            return Finding("network", "bad", str(err))
        code = ""
        try:
            with told("asking whether you may launch instances"):
                self._api.ec2.create_security_group(
                    GroupName="periflow-ray-check", Description="periflow-ray", VpcId=vpc_id, DryRun=True
                )
        except ProviderError as err:
            code = err.code
            if code not in ("DryRunOperation", "UnauthorizedOperation"):
                raise
        if code == "UnauthorizedOperation":
            return Finding(
                "permissions", "bad", "you may not make security groups; docs/aws.md has the policy that 'up' needs"
            )
        return Finding("permissions", "good", "you may make what the cluster needs in EC2")

    def _check_quotas(self, spec: ClusterSpec, *, is_new: bool) -> Iterator[Finding]:
        """The account's quota for each kind of machine, and how much of it is in use, in vCPUs."""
        wanted: dict[tuple[str, str], int] = {}
        for vm in spec.vms:
            quota = find_quota(vm.instance_type, is_spot=vm.is_spot)
            if quota is not None and vm.num_vcpus is not None:
                # The largest one of them: a job asks for VMs of one type.
                wanted[quota] = max(wanted.get(quota, 0), vm.num_vcpus * spec.max_num_nodes)
        for (code, title), num_vcpus in wanted.items():
            try:
                with told("asking for your quota", "servicequotas:GetServiceQuota"):
                    answer = self._api.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
            except ProviderError as err:
                yield Finding("quota", "warning", f"{title}: could not be asked for: {err}")
                continue
            limit, used = float(answer["Quota"]["Value"]), self._count_used_vcpus(code)
            text = f"{title}: {limit:.0f} vCPUs, {used} in use; {spec.max_num_nodes} nodes need {num_vcpus}"
            if limit - used >= num_vcpus:
                yield Finding("quota", "good", text)
            else:
                link = (
                    f"https://{self._api.region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{code}"
                )
                least = min(vm.num_vcpus or 0 for vm in spec.vms if _quota_code(vm.instance_type, vm.is_spot) == code)
                verdict = "bad" if is_new and limit - used < least else "warning"
                yield Finding("quota", "bad" if verdict == "bad" else "warning", f"{text}. Ask for more: {link}")

    def _count_used_vcpus(self, quota_code: str) -> int:
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        used = 0
        for reservation in self._api.pages("describe_instances", "Reservations", states):
            for instance in reservation["Instances"]:
                is_spot = instance.get("InstanceLifecycle") == "spot"
                if _quota_code(instance["InstanceType"], is_spot) == quota_code:
                    options = instance.get("CpuOptions", {})
                    used += int(options.get("CoreCount", 1)) * int(options.get("ThreadsPerCore", 1))
        return used


def _quota_code(instance_type: str, is_spot: bool) -> str | None:
    quota = find_quota(instance_type, is_spot=is_spot)
    return None if quota is None else quota[0]
