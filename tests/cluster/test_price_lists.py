"""Today's prices, as the clouds' price interfaces word them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from periflow_ray.cli import price_copy
from periflow_ray.cluster.providers.price_lists import fetch_azure_prices, read_aws_products, read_azure_items
from periflow_ray.cluster.providers.provider import ProviderError
from periflow_ray.plan.catalogue import PriceCopy, find_vm, use_prices


def azure_item(sku: str, usd: float, region: str = "eastus", product: str = "Virtual Machines NCasT4 v3") -> dict:
    return {"skuName": sku, "productName": product, "armRegionName": region, "retailPrice": usd}


class RetailPrices(BaseHTTPRequestHandler):
    """Azure's list, in two pages for each size."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        (size,) = [part.split("'")[1] for part in query["$filter"][0].split(" and ") if "armSkuName" in part]
        items = [azure_item(size, 1.5)] if "page" in query else [azure_item(f"{size} Spot", 0.5)]
        following = None if "page" in query else f"http://127.0.0.1:{self.server.server_address[1]}{self.path}&page=2"
        body = json.dumps({"Items": items, "NextPageLink": following}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def retail_prices() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), RetailPrices) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api/retail/prices"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _own_catalogue() -> Iterator[None]:
    yield
    use_prices({})


def test_a_price_on_demand_is_that_of_an_hour_in_dollars() -> None:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "1.0060000000"}}
    free = {"unit": "Hrs", "pricePerUnit": {"USD": "0.0000000000"}}
    product = {
        "product": {"attributes": {"regionCode": "us-east-1", "instanceType": "g5.xlarge"}},
        "terms": {"OnDemand": {"A": {"priceDimensions": {"A.1": dimension}}, "B": {"priceDimensions": {"B.1": free}}}},
    }
    assert dict(read_aws_products([product])) == {"us-east-1": 1.006}


def test_windows_and_low_priority_are_no_prices_of_a_linux_vm() -> None:
    items = [
        azure_item("NC4as T4 v3", 0.526),
        azure_item("NC4as T4 v3 Spot", 0.1),
        azure_item("NC4as T4 v3 Low Priority", 0.2),
        azure_item("NC4as T4 v3", 0.71, product="Virtual Machines NCasT4 v3 Windows"),
        azure_item("NC4as T4 v3", 0.6, region="koreacentral"),
    ]
    assert read_azure_items(items) == {"eastus": (0.526, (0.1, 0.1)), "koreacentral": (0.6, None)}


def test_a_copy_is_what_the_catalogue_says_from_then_on(
    retail_prices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(price_copy, "price_copy_path", lambda: tmp_path / "data" / "prices.json")
    before = find_vm("aws-16gb-t4-1g-us-east-1")
    path = price_copy.write_price_copies({"azure": fetch_azure_prices(date(2026, 11, 27), retail_prices)})
    use_prices({})
    price_copy.apply_price_copy()
    assert path.is_file()
    spot = find_vm("azure-16gb-t4-1g-eastus-spot")
    assert (spot.spot_price_per_hour_usd, spot.on_demand_price_per_hour_usd) == ((0.5, 0.5), 1.5)
    assert (spot.price_date, spot.price_source) == ("2026-11-27", "Azure retail prices")
    assert find_vm("azure-16gb-t4-1g-eastus").price_per_hour_usd == 1.5
    # Of the other cloud, and of a region that the copy does not have, the catalogue's own.
    assert find_vm("aws-16gb-t4-1g-us-east-1") == before
    assert find_vm("azure-16gb-t4-1g-koreacentral").price_per_hour_usd != 1.5
    price_copy.write_price_copies({"aws": PriceCopy("2026-11-28", "AWS", {"g4dn.xlarge": {"us-east-1": (9.0, None)}})})
    price_copy.apply_price_copy()
    assert find_vm("aws-16gb-t4-1g-us-east-1").price_per_hour_usd == 9.0
    assert find_vm("azure-16gb-t4-1g-eastus").price_per_hour_usd == 1.5


def test_a_damaged_copy_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"aws": {"date": "2026"')
    monkeypatch.setattr(price_copy, "price_copy_path", lambda: path)
    price_copy.apply_price_copy()
    assert "prices are the catalogue's own" in capsys.readouterr().err
    assert find_vm("aws-16gb-t4-1g-us-east-1").price_per_hour_usd is not None


def test_a_list_that_does_not_answer_is_said() -> None:
    with pytest.raises(ProviderError, match="did not answer"):
        fetch_azure_prices(date(2026, 11, 27), "http://127.0.0.1:1/prices")
