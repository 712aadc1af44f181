"""`mailboat products`: products of a server on this machine and their plans, while it runs or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from mailboat.cli.extras import Misuse, needing, told_plainly
from mailboat.cli.output import facts, json_line, rows

DETAILS = ("all", "errors", "share", "none")
NONE = "none"

data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The server's data folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One line of JSON for each.")


@click.group()
def products() -> None:
    """Products of a server on this machine: what it takes of them, and for how long."""


@products.command("list")
@data_option
@json_option
def list_products(data: Path, as_json: bool) -> None:
    """List the products."""
    with needing("server"):
        from mailboat.server.catalog import Catalog
        from mailboat.server.offline import with_catalog
        from mailboat.server.products import told

    async def listed(catalog: Catalog) -> list[dict[str, Any]]:
        return [await told(catalog, row, time.time()) for row in await catalog.products()]

    with told_plainly():
        found = with_catalog(data, listed)
    if as_json:
        for each in found:
            json_line(each)
        return
    columns = ("product", "details", "records this month", "of", "history days")
    lines = [
        (
            each["product"],
            each["plan"]["details"],
            each["records_this_month"],
            _or_none(each["plan"]["records_per_month"]),
            _or_none(each["plan"]["history_days"]),
        )
        for each in found
    ]
    rows(columns, lines, numbers=columns[2:])


@products.command()
@click.argument("product")
@data_option
@json_option
def show(product: str, data: Path, as_json: bool) -> None:
    """Show a product and its plan."""
    with needing("server"):
        from mailboat.server.catalog import Catalog
        from mailboat.server.offline import with_catalog
        from mailboat.server.products import told

    async def found(catalog: Catalog) -> dict[str, Any] | None:
        row = await catalog.product(product)
        return None if row is None else await told(catalog, row, time.time())

    with told_plainly():
        answer = with_catalog(data, found)
    if answer is None:
        raise Misuse(f"there is no product {product!r} here; `mailboat products list` names those there are")
    _show(answer, as_json=as_json)


@products.command("set")
@click.argument("product")
@data_option
@json_option
@click.option("--details", type=click.Choice(DETAILS), help="Which sessions are wanted in full.")
@click.option("--share", type=float, help="With --details share: which part of the sessions, from 0 to 1.")
@click.option(
    "--for-version",
    "versions",
    multiple=True,
    metavar="PATTERN=DETAILS",
    help="An exception from --details, such as 1.*=none; may be given several times, the first that fits counts. "
    "An empty text takes all away.",
)
@click.option("--records-per-month", metavar="N", help="Records of wanted sessions a month, or none for any number.")
@click.option("--max-age-days", type=float, help="Sessions that ended before so many days are not taken.")
@click.option("--history-days", metavar="DAYS", help="What is older is deleted; none keeps it for good.")
@click.option("--agent", "agents", multiple=True, help="A kind of agent that may send; an empty text for any.")
@click.option("--oldest-agent", help="The first version of agents that is taken; an empty text for any.")
@click.option("--sync-interval", metavar="S", help="Seconds between an agent's negotiations, or none for its own.")
@click.option("--backoff-floor", type=float, help="Seconds of an agent's shortest pause after a failure.")
@click.option("--max-rate", metavar="BYTES", help="Bytes a second that one agent sends, or none for any number.")
def set_plan(product: str, data: Path, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - click's values
    """Make a product, or change its plan: what is not named stays as it is. A running server follows at once."""
    with needing("server"):
        from mailboat.server.catalog import Catalog
        from mailboat.server.offline import with_catalog
        from mailboat.server.products import put_plan, told

    async def put(catalog: Catalog) -> dict[str, Any]:
        row = await put_plan(catalog, product, changes, time.time())
        return await told(catalog, row, time.time())

    with told_plainly():
        changes = _changes(given)
        answer = with_catalog(data, put)
    _show(answer, as_json=as_json)


_NUMBERS_OR_NONE: Final = (
    ("records_per_month", int),
    ("history_days", float),
    ("sync_interval", float),
    ("max_rate", int),
)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """The plan's fields that the options name."""
    changes = {name: given[name] for name in ("details", "share", "max_age_days", "oldest_agent", "backoff_floor")}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name, kind in _NUMBERS_OR_NONE:
        if given[name] is not None:
            changes[name] = _or_number(name, given[name], kind)
    if given["agents"]:
        changes["agents"] = [each for each in given["agents"] if each]
    if given["versions"]:
        changes["versions"] = dict(_version_rules(given["versions"]))
    return changes


def _or_number(name: str, text: str, kind: type[int | float]) -> int | float | None:
    if text.strip().lower() == NONE:
        return None
    try:
        return kind(text)
    except ValueError:
        option = name.replace("_", "-")
        raise Misuse(f"--{option} {text!r}: a number is needed, or {NONE}") from None


def _version_rules(given: Sequence[str]) -> list[tuple[str, str]]:
    rules = []
    for each in given:
        pattern, sign, details = each.rpartition("=")
        if each and not (sign and pattern and details in DETAILS):
            raise Misuse(f"--for-version {each!r}: PATTERN=DETAILS is needed, DETAILS one of {', '.join(DETAILS)}")
        if each:
            rules.append((pattern, details))
    return rules


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        json_line(answer)
        return
    plan = answer["plan"]
    versions = ", ".join(f"{pattern}={details}" for pattern, details in plan["versions"].items())
    facts(
        [
            ("product", answer["product"]),
            ("details", plan["details"] if plan["details"] != "share" else f"a share of {plan['share']:g}"),
            ("for versions", versions or "-"),
            ("records a month", f"{answer['records_this_month']} of {_or_none(plan['records_per_month'])}"),
            ("sessions not older than", f"{plan['max_age_days']:g} days"),
            ("kept for", "good" if plan["history_days"] is None else f"{plan['history_days']:g} days"),
            ("agents", ", ".join(plan["agents"]) or "any"),
            ("oldest agent", plan["oldest_agent"] or "any"),
            (
                "agents ask",
                "as they are set" if plan["sync_interval"] is None else f"every {plan['sync_interval']:g} s",
            ),
            ("after a failure", f"not before {plan['backoff_floor']:g} s"),
            ("bytes a second", str(_or_none(plan["max_rate"]))),
        ]
    )


def _or_none(value: object) -> object:
    return "any" if value is None else value
