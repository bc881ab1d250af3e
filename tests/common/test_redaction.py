"""Secrets and personal data are found by their form, and nothing else is."""

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.common.personal_data import iban_checks, luhn
from hivemind.servers.common.redaction import Redacted, redact, redact_all

ALNUM = string.ascii_letters + string.digits
FILLER = st.text(st.sampled_from("abc xyz.,;:!?()\n\t-_'\"é漢"), max_size=30)


def letters(alphabet: str, size: int) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(alphabet), min_size=size, max_size=size)


def with_check_digit(digits: str) -> str:
    return next(digits + d for d in string.digits if luhn(digits + d))


def iban_of(country: str, account: str) -> str:
    return next(f"{country}{n:02}{account}" for n in range(98) if iban_checks(f"{country}{n:02}{account}"))


EMAILS = st.builds(
    "{}@{}.{}".format,
    letters(ALNUM + "._+", 8).map(lambda s: f"a{s}z"),
    letters(string.ascii_lowercase, 6),
    st.sampled_from(["com", "org", "co.uk", "example"]),
)
CARDS = letters(string.digits, 14).map(lambda d: with_check_digit("4" + d))
GROUPED_CARDS = CARDS.map(lambda c: " ".join(c[i : i + 4] for i in range(0, 16, 4)))
IBANS = letters(string.digits, 18).map(lambda d: iban_of("DE", d))
SPACED_IBANS = IBANS.map(lambda i: " ".join(i[k : k + 4] for k in range(0, len(i), 4)))
SSNS = st.builds("{:03}-{:02}-{:04}".format, st.integers(1, 665), st.integers(1, 99), st.integers(1, 9999))
PHONES = letters(string.digits, 10).map(lambda d: f"+4{d}")
ADDRESSES = st.ip_addresses(v=4).filter(lambda a: a.is_global and int(a) >> 24 > 0).map(str)
ADDRESSES_6 = st.integers(0, 2**64 - 1).map(lambda n: str(ipaddress.IPv6Address((0x2A00_1450_4001_0001 << 64) + n)))
SECRETS = st.one_of(
    letters(string.ascii_uppercase + string.digits, 16).map("AKIA{}".format),
    letters(ALNUM, 36).map("ghp_{}".format),
    letters(ALNUM, 24).map("sk_live_{}".format),
    letters(ALNUM, 39).map("sk-proj-7{}".format),
    letters(ALNUM + "-_", 35).map("AIza{}".format),
    letters(ALNUM, 24).map("glpat-{}".format),
    st.tuples(letters(ALNUM, 20), letters(ALNUM, 20), letters(ALNUM + "-_", 43)).map(
        lambda t: f"eyJ{t[0]}.eyJ{t[1]}.{t[2]}"
    ),
)
NAMED = st.tuples(
    st.sampled_from(['password = "{}"', "PASSWORD={}", "pwd: {}", "my password is {}", "DB_PASSWORD := '{}'"]),
    letters(ALNUM, 10).map(lambda s: f"p7{s}"),
)
PLANTED = st.one_of(
    EMAILS, CARDS, GROUPED_CARDS, IBANS, SPACED_IBANS, SSNS, PHONES, ADDRESSES, ADDRESSES_6, SECRETS
)  # fmt: skip


@given(FILLER, PLANTED, FILLER)
def test_what_was_planted_never_survives(before: str, planted: str, after: str) -> None:
    redacted = redact(f"{before} {planted} {after}")

    assert planted not in redacted.text
    assert redacted.count >= 1


@given(FILLER, NAMED, FILLER)
def test_a_named_password_never_survives(before: str, named: tuple[str, str], after: str) -> None:
    form, value = named

    assert value not in redact(f"{before} {form.format(value)} {after}").text


@given(st.lists(st.one_of(FILLER, PLANTED, NAMED.map(lambda n: n[0].format(n[1])), st.text(max_size=20)), max_size=6))
def test_redacting_again_changes_nothing(parts: list[str]) -> None:
    once = redact("".join(parts))

    assert redact(once.text).text == once.text
    assert redact(once.text).count == 0


@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    assert redact(text).count >= 0


def test_the_same_value_gets_the_same_placeholder_over_all_texts() -> None:
    texts, count = redact_all(["ask bob@x.org or ann@x.org", "no, ann@x.org!", "bob@x.org it is"])

    assert texts == ("ask [EMAIL] or [EMAIL_2]", "no, [EMAIL_2]!", "[EMAIL] it is")
    assert count == 4


def test_a_new_value_does_not_take_the_placeholder_that_stands_there_already() -> None:
    assert redact("[EMAIL] wrote to ann@x.org").text == "[EMAIL] wrote to [EMAIL_2]"


def test_a_private_key_goes_with_its_body() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----"

    assert redact(f"this: {key}\nbye").text == "this: [PRIVATE_KEY]\nbye"


def test_the_name_of_a_secret_and_the_url_around_a_password_stay() -> None:
    assert redact('aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"').text.startswith("aws_secret_")
    assert redact("postgres://app:s3cr3tpw@db:5432/x").text == "postgres://app:[PASSWORD]@db:5432/x"


@pytest.mark.parametrize(
    "text",
    [
        "In 1789 the population was 26,000,000; by 1850 it was 36,472,118 people.",
        "Compute 1234567890123 * 42, then 3.14159265358979 and 4242424242424243.",
        "The vector is (100, 200, 300) and the series 1 2 3 4 5 6 7 8 9 10 11 12.",
        "Published 2024-05-17T12:30:45Z, ISBN 978-3-16-148410-0, version 1.22.333.4444, on 127.0.0.1:8080.",
        "def f(a, b):\n    return a@b.reshape(3, 4)  # @property",
        'password = getpass.getpass("Password: ")\ntoken = tokens[index]\nif token == "identifier":',
        "api_key = os.environ['SERVICE_API_KEY']\nself.token: str | None = None",
        "The secret is patience, the key is practice: a password is required to sign in.",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "git clone git@github.com:org/project.git && cd project",
        "Room 555-1234, pages 12-34, the score was 078-05.",
        "She lives in DE and pays by bank transfer, IBAN unknown. 10.0.0.1 and 192.168.1.1 are private.",
    ],
)
def test_ordinary_prose_code_and_numbers_stay_as_they_are(text: str) -> None:
    assert redact(text) == Redacted(text, 0)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "unit", ["key ", "password", "//:_authToken", "://a:", "a@a.", "1 ", "sk-a-", "AKIA", "-----BEGIN ", "eyJa.", "f:"]
)
def test_a_text_that_was_made_to_be_slow_is_not(unit: str) -> None:
    redact(unit * (200_000 // len(unit)))
    redact("api_key" + " " * 200_000 + unit)
