"""Scrubbing: what is taken out, what stays, and that nothing slips through nested containers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.agent.scrub import REDACTED, Scrubber, names_secret, scrubbed
from mailboat.protocol.limits import MAX_DEPTH


@pytest.mark.parametrize(
    "key",
    [
        *("password", "PASSWORD", "userPassword", "db_passwd", "Pass", "PWD", "passphrase"),
        *("api_key", "API-Key", "apiKey", "APIKEY", "x-api-key", "secret", "client_secret", "aws_secret_access_key"),
        *(
            "Authorization",
            "proxy-authorization",
            "auth",
            "HTTPAuth",
            "Cookie",
            "Set-Cookie",
            "sessionid",
            "session_id",
        ),
        *("csrf", "x-csrf-token", "xsrfToken", "credentials", "private_key", "jwt", "otp", "pin", "user_pin"),
        *("card_number", "cardNumber", "creditCard", "cvv", "CVC", "cvv2", "iban", "ssn", "bearer"),
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert names_secret(key)
    assert scrubbed({key: "hunter2"}) == {key: REDACTED}
    assert scrubbed({key: 4111}) == {key: REDACTED}
    assert scrubbed({"headers": {key.encode(): b"hunter2"}}) == {"headers": {key.encode(): REDACTED}}


@pytest.mark.parametrize(
    "key", ["rows", "source", "spin", "passenger", "compass", "author", "pinned", "panel", "accent", "", "…", "company"]
)
def test_names_of_no_secret(key: str) -> None:
    assert scrubbed({key: "value"}) == {key: "value"}


def test_a_token_is_a_secret_unless_it_is_a_number() -> None:
    assert scrubbed({"access_token": "abc", "tokens_used": 812, "token": b"abc"}) == {
        "access_token": REDACTED,
        "tokens_used": 812,
        "token": REDACTED,
    }


def test_containers_are_gone_through_at_any_depth() -> None:
    attributes = {"request": {"headers": [{"Cookie": "a=b", "Accept": "*/*"}], "body": ("x", {"password": "p"})}}
    assert scrubbed(attributes) == {
        "request": {"headers": [{"Cookie": REDACTED, "Accept": "*/*"}], "body": ["x", {"password": REDACTED}]}
    }


def test_head_fields_given_as_pairs_are_gone_through() -> None:
    """As in an ASGI scope, `http.client`, aiohttp's raw heads; and at any depth."""
    fields = [(b"host", b"example.com"), (b"authorization", b"Bearer x"), ("Cookie", "a=b"), ("x-token-count", 7)]
    kept = [[b"host", b"example.com"], [b"authorization", REDACTED], ["Cookie", REDACTED], ["x-token-count", 7]]
    assert scrubbed({"headers": fields, "scope": {"headers": tuple(fields)}}) == {
        "headers": kept,
        "scope": {"headers": kept},
    }
    assert scrubbed({"a": [("next", [("password", "x")])]}) == {"a": [["next", [["password", REDACTED]]]]}


def test_what_is_no_list_of_pairs_stays() -> None:
    harmless = {"path": ["password", "reset"], "at": [[1, 2], ["a", "b", "password"], ["cookie"]]}
    assert scrubbed(harmless) == harmless


def test_what_is_nested_too_deep_to_be_gone_through_is_taken_out() -> None:
    innermost: Any = {"password": "hunter2"}
    for _ in range(MAX_DEPTH + 5):
        innermost = {"within": innermost}
    assert "hunter2" not in repr(scrubbed(innermost))


def test_a_container_that_holds_itself_ends() -> None:
    itself: dict[str, Any] = {"password": "hunter2"}
    itself["again"] = itself
    assert "hunter2" not in repr(scrubbed(itself))


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["a", "password", "nested"]), nested, max_size=3), nested)
def test_a_planted_secret_never_comes_through(attributes: dict[str, Any], other: object) -> None:
    planted = {"outer": [attributes, {"api_key": "PLANTED", "other": other}], **attributes}
    assert "PLANTED" not in repr(scrubbed(planted))


@given(st.dictionaries(st.sampled_from(["rows", "source", "nested"]), nested, max_size=3))
def test_harmless_attributes_come_through_as_they_are(attributes: dict[str, Any]) -> None:
    names = {name for name in repr(attributes).lower().split("'") if name}
    if not any(names_secret(name) or "token" in name for name in names):
        assert scrubbed(attributes) == attributes


def test_the_applications_callable_sees_what_is_left_and_has_the_last_word() -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def own(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        seen.append((name, attributes))
        return {key: value for key, value in attributes.items() if key != "path"}

    scrubber = Scrubber(own)
    assert scrubber.always
    assert scrubber.scrub("file.open", {"path": "/home/me", "password": "p", "size": 3}) == {
        "password": REDACTED,
        "size": 3,
    }
    assert seen == [("file.open", {"path": "/home/me", "password": REDACTED, "size": 3})]


def test_a_callable_that_gives_no_map_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"scrub gave a NoneType for 'file\.open'"):
        Scrubber(lambda _name, _attributes: None).scrub("file.open", {})  # type: ignore[arg-type, return-value]


def test_only_harmless_names_are_remembered() -> None:
    scrubber = Scrubber()
    scrubber.scrub("x", {"rows": 1, "password": "p", "access_token": 3, "nested": {"password": "p"}})
    assert scrubber.harmless == {"rows", "nested"}


def test_made_up_names_do_not_grow_the_memory_without_bound() -> None:
    scrubber = Scrubber()
    for at in range(6000):
        scrubber.scrub("x", {f"name{at}": 1})
    assert len(scrubber.harmless) <= 4096
