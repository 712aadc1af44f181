"""Scrubbing: what is taken out, what stays, and that nothing slips through nested containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.agent.scrub import Scrubber, scrubbed
from mailboat.agent.secret_names import REDACTED, names_secret, without_named_secrets
from mailboat.protocol.limits import MAX_DEPTH, MAX_TEXT


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


class Pair(NamedTuple):
    user: str
    password: object


def test_the_fields_of_a_named_tuple_are_names() -> None:
    kept = {"user": "x", "password": REDACTED}
    assert scrubbed({"login": Pair("x", "hunter2"), "more": [Pair("x", "hunter2")]}) == {"login": kept, "more": [kept]}


class Field(NamedTuple):
    name: str | bytes
    value: object


def test_a_named_pair_is_a_pair_as_well() -> None:
    fields = [Field("Cookie", "hunter2"), Field(b"host", "example.com"), Field("x-token-count", 7)]
    kept = [
        {"name": "Cookie", "value": REDACTED},
        {"name": b"host", "value": "example.com"},
        {"name": "x-token-count", "value": 7},
    ]
    assert scrubbed({"head": fields, "first": fields[0]}) == {"head": kept, "first": kept[0]}


# -- texts of objects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Login(user='x', password='hunter2')", "Login(user='x', password=[redacted])"),
        (r"Login(password='hun\'ter2, x', user='y')", "Login(password=[redacted], user='y')"),
        ('Login(password="hunter2\'s", user=1)', "Login(password=[redacted], user=1)"),
        ("user='x' password='hunter2' z=1", "user='x' password=[redacted] z=1"),
        ("user=x password=hunter2 hunter2 z=1", "user=x password=[redacted] z=1"),
        ("{'a': 1, 'password': ('hunter2', 'hunter2'), 'b': 2}", "{'a': 1, 'password': [redacted], 'b': 2}"),
        ('Body({"api-key": "hunter2"}, ok=True)', 'Body({"api-key": [redacted]}, ok=True)'),
        ("C(password=b'hunter2', n=1)", "C(password=[redacted], n=1)"),
        ("C(pin=Secret(a='hunter2', b=[1, {'hunter2'}]), n=1)", "C(pin=[redacted], n=1)"),
        ("C(pin=<Held hunter2, at 0x7f>, n=1)", "C(pin=[redacted], n=1)"),
        ("C(pin=x>hunter2, n=1)", "C(pin=[redacted], n=1)"),
        ("Use(tokens=812, token='hunter2', n=3)", "Use(tokens=812, token=[redacted], n=3)"),
        ("Use(token=None, rate=-1.5)", "Use(token=None, rate=-1.5)"),
        ("<C password: hunter2>", "<C password: [redacted]"),
        ("C(password='hunter2", "C(password=[redacted]"),
        ("C(password='hunter2\\", "C(password=[redacted]"),
        ("C(password=", "C(password="),
        ("https://me:hunter2@example.com/a", "https://[redacted]@example.com/a"),
        ("https://example.com/auth?a=b", "https://example.com/auth?a=b"),
        ("<object object at 0x7f>", "<object object at 0x7f>"),
        ("Job(at=12:30, name='passenger: 7')", "Job(at=12:30, name='passenger: 7')"),
    ],
)
def test_what_stands_under_the_name_of_a_secret_in_a_text_is_taken_out(said: str, kept: str) -> None:
    assert without_named_secrets(said) == kept


@dataclass
class Login:
    user: object
    password: object
    rows: object = 7


hidden = st.recursive(
    st.text(max_size=9).map(lambda text: f"{text}PLANTED{text}")
    | st.binary(max_size=9).map(lambda raw: raw + b"PLANTED"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner) | st.tuples(inner, inner),
    max_leaves=9,
)


@given(hidden)
def test_however_a_secret_is_quoted_it_is_taken_out_and_nothing_else(secret: object) -> None:
    said = without_named_secrets(repr(Login("x", Login("y", secret))))
    assert said == f"Login(user='x', password={REDACTED}, rows=7)"
    assert without_named_secrets(repr({"n": 1, "cookie": secret, "m": 2})) == "{'n': 1, 'cookie': [redacted], 'm': 2}"


@pytest.mark.parametrize(
    "text",
    [
        "a-",
        "a.",
        "'a",
        "'",
        '"',
        "(",
        ") ",
        "x ",
        "x: ",
        "x=",
        " \t",
        "\\",
        "://",
        "://a",
        "password=",
        "password=(",
        "pin: ",
    ],
)
def test_the_longest_of_texts_takes_no_time_to_speak_of(text: str) -> None:
    """With a search that is not linear, each of these would take minutes."""
    said = without_named_secrets("password='PLANTED'," + text * (MAX_TEXT // len(text)) + ",password='PLANTED'")
    assert "PLANTED" not in said[:50]
