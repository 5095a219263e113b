"""What the providers' own price interfaces say of VM types today.

AWS: the Price List API and the spot price history, with an account's credentials. Azure: the retail prices, which
anybody may read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import requests

from periflow_ray.cluster.providers.aws_api import AwsApi, told
from periflow_ray.cluster.providers.provider import ProviderError
from periflow_ray.plan.catalogue import PriceCopy, load_catalogue

AZURE_PRICES_URL = "https://prices.azure.com/api/retail/prices"
# Where AWS's Price List API is.
_PRICING_REGION = "us-east-1"
_TIMEOUT_S = 60.0
# Instance types in one request for spot prices.
_BATCH = 50
_Prices = dict[str, dict[str, tuple[float | None, tuple[float, float] | None]]]


def fetch_aws_prices(today: date) -> PriceCopy:
    """On demand and spot, Linux, of every AWS instance type of the catalogue, in its regions.

    Raises:
        ProviderError: AWS refused.
    """
    regions = _regions_by_type("aws")
    pricing = AwsApi(_PRICING_REGION).client("pricing")
    on_demand: dict[str, dict[str, float]] = {}
    for instance_type in regions:
        with told("asking for prices", "pricing:GetProducts"):
            pages = pricing.get_paginator("get_products").paginate(
                ServiceCode="AmazonEC2", Filters=_linux_filters(instance_type)
            )
            products = [json.loads(product) for page in pages for product in page["PriceList"]]
        on_demand[instance_type] = dict(read_aws_products(products))
    spot = _fetch_aws_spot_prices(regions)
    usd: _Prices = {
        instance_type: {
            region: (on_demand[instance_type].get(region), spot.get((instance_type, region)))
            for region in regions[instance_type]
            if region in on_demand[instance_type] or (instance_type, region) in spot
        }
        for instance_type in regions
    }
    return PriceCopy(today.isoformat(), "AWS Price List and spot price history", usd)


def fetch_azure_prices(today: date, url: str = AZURE_PRICES_URL) -> PriceCopy:
    """On demand and spot, Linux, of every Azure VM size of the catalogue, in its regions.

    Raises:
        ProviderError: Azure did not answer as it should.
    """
    usd: _Prices = {}
    for size, regions in _regions_by_type("azure").items():
        found = read_azure_items(_fetch_azure_items(url, size))
        usd[size] = {region: found[region] for region in regions if region in found}
    return PriceCopy(today.isoformat(), "Azure retail prices", usd)


def read_aws_products(products: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Region and price on demand of each product of the Price List API."""
    for product in products:
        region = product["product"]["attributes"].get("regionCode")
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                usd = float(dimension["pricePerUnit"].get("USD", 0))
                if region and dimension.get("unit") == "Hrs" and usd > 0:
                    yield region, usd


def read_azure_items(items: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
    """By region: the price on demand and the spot price, of the items of one VM size."""
    on_demand: dict[str, float] = {}
    spot: dict[str, float] = {}
    for item in items:
        name, usd = str(item.get("skuName", "")), float(item.get("retailPrice") or 0)
        # Low-priority VMs are those of Azure Batch alone.
        if "Windows" in str(item.get("productName", "")) or name.endswith("Low Priority") or usd <= 0:
            continue
        prices = spot if name.endswith("Spot") else on_demand
        region = str(item["armRegionName"])
        prices[region] = min(usd, prices.get(region, usd))
    return {
        region: (on_demand.get(region), (spot[region], spot[region]) if region in spot else None)
        for region in {*on_demand, *spot}
    }


def _regions_by_type(cloud: str) -> dict[str, list[str]]:
    regions: dict[str, list[str]] = {}
    for vm in load_catalogue().values():
        if vm.cloud == cloud and not vm.is_spot and vm.retired_on is None:
            regions.setdefault(vm.instance_type, []).append(vm.region)
    return regions


def _linux_filters(instance_type: str) -> list[dict[str, str]]:
    wanted = {
        "instanceType": instance_type,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
    }
    return [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]


def _fetch_aws_spot_prices(regions: Mapping[str, list[str]]) -> dict[tuple[str, str], tuple[float, float]]:
    types_by_region: dict[str, list[str]] = {}
    for instance_type, names in regions.items():
        for region in names:
            types_by_region.setdefault(region, []).append(instance_type)
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for region, types in types_by_region.items():
        try:
            entries = list(_fetch_spot_history(region, types))
        except ProviderError as err:
            # Accounts have to ask for some regions first; those keep the prices that are known.
            if err.code not in ("AuthFailure", "OptInRequired", "UnauthorizedOperation"):
                raise
            continue
        for entry in entries:
            key, usd = (entry["InstanceType"], region), float(entry["SpotPrice"])
            low, high = found.get(key, (usd, usd))
            found[key] = (min(low, usd), max(high, usd))
    return found


def _fetch_spot_history(region: str, types: list[str]) -> Iterator[dict[str, Any]]:
    """The newest price of each type and zone."""
    from datetime import datetime, timezone

    ec2 = AwsApi(region).ec2
    for start in range(0, len(types), _BATCH):
        with told(f"asking for spot prices in {region}", "ec2:DescribeSpotPriceHistory"):
            # What holds now begins before now, and AWS gives it with it.
            pages = ec2.get_paginator("describe_spot_price_history").paginate(
                InstanceTypes=types[start : start + _BATCH],
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(timezone.utc),
            )
            yield from (entry for page in pages for entry in page["SpotPriceHistory"])


def _fetch_azure_items(url: str, size: str) -> Iterator[dict[str, Any]]:
    query = f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armSkuName eq '{size}'"
    following: str | None = requests.Request("GET", url, params={"$filter": query}).prepare().url
    while following:
        try:
            answer = requests.get(following, timeout=_TIMEOUT_S)
            answer.raise_for_status()
            page = answer.json()
        except (requests.RequestException, ValueError) as err:
            raise ProviderError(f"Azure's price list at {url} did not answer: {err}") from err
        yield from page["Items"]
        following = page.get("NextPageLink")
