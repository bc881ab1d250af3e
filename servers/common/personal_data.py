"""Rules that find personal data by its form; what has a check digit is checked, so that ordinary numbers stay."""

import ipaddress
import re
from typing import Final

from hivemind.servers.common.redaction_rule import Rule

_IBAN_LEAST: Final = 15
_CARD_LENGTHS: Final = frozenset({13, 14, 15, 16, 19})

_EMAIL = re.compile(
    r"(?<![\w.%+-])(?!git@)[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w(-])"  # `(`: code as a@b.dot(c)
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.ASCII)
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-]|\.\d)", re.ASCII)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_PHONE = re.compile(
    r"(?<![\w+.-])(?:"
    r"\+\d(?:[ ./()-]{0,2}\d){7,14}"  # international, E.164
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}"  # North America
    r")(?![\w]|[.-]\d)",
    re.ASCII,
)
_PHONE_WORDS: Final = ("phone", "mobile", "cell", "telephone", "tel", "fax", "whatsapp")
_NAMED_PHONE = re.compile(
    rf"\b(?:{'|'.join(_PHONE_WORDS)})\b\.?(?: number| no\.?)?(?: is|:)? ?:? ?"
    r"(\(?\d(?:[ ./()-]{0,2}\d){6,14})(?![\w]|[.-]\d)",
    re.ASCII | re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.])(?<!version )(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-f]{3}:[0-9a-f:]{2,34}(?![\w.]|:\w)", re.ASCII | re.IGNORECASE)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def iban_checks(letters: str) -> bool:
    """Whether an IBAN without spaces leaves 1 after division by 97 (ISO 13616, ISO 7064)."""
    turned = letters[4:] + letters[:4]
    return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _card(text: str) -> int:
    digits = text.replace(" ", "").replace("-", "")
    return len(text) if len(digits) in _CARD_LENGTHS and luhn(digits) else 0


def _iban(text: str) -> int:
    """The longest part that checks: capital letters that follow may belong to the sentence."""
    for end in range(len(text), 0, -1):
        letters = text[:end].replace(" ", "")
        if len(letters) < _IBAN_LEAST:
            return 0
        cut_inside = (end < len(text) and text[end] != " ") or text[end - 1] == " "
        if not cut_inside and iban_checks(letters):
            return end
    return 0


def _address(text: str) -> int:
    try:
        return len(text) if ipaddress.ip_address(text).is_global else 0
    except ValueError:
        return 0


_E_MAIL: Final = (Rule("EMAIL", _EMAIL, needs=("@",), before=64),)
_NUMBERS: Final = (
    Rule("SSN", _SSN),
    Rule("CARD", _CARD, length=_card),
    Rule("IBAN", _IBAN, length=_iban),
    Rule("PHONE", _PHONE),
    Rule("PHONE", _NAMED_PHONE, needs=_PHONE_WORDS, group=1),
)
_V4: Final = (Rule("IP", _IPV4, length=_address),)
_V6: Final = (Rule("IP", _IPV6, length=_address),)


def _classes(digits: bytes, mark: bytes) -> bytes:
    """A table for bytes.translate: these digits become 0, the mark stays, all else becomes x."""
    return bytes(ord("0") if bytes((i,)) in digits else i if i == ord(mark) else ord("x") for i in range(256))


_DECIMAL: Final = b"0123456789"
_BY_SPACE: Final = _classes(_DECIMAL, b" ")
_BY_DOT: Final = _classes(_DECIMAL, b".")
_BY_COLON: Final = _classes(_DECIMAL + b"abcdefABCDEF", b":")


def personal_data_rules(data: bytes) -> tuple[Rule, ...]:
    """The rules that may match the UTF-8 `data`; to look takes some microseconds a kB.

    They are of e-mail addresses, US social security numbers, payment cards, IBANs, phones and public IP addresses.
    """
    rules: tuple[Rule, ...] = _E_MAIL if b"@" in data else ()
    if b"0000000" in data.translate(_BY_SPACE, b" ./()-"):  # seven digits with nothing but separators between
        rules += _NUMBERS
    if data.count(b".") > 2 and data.translate(_BY_DOT).count(b".0") > 2:
        rules += _V4
    if data.count(b":") > 1 and (b"::" in data or b"0:0" in data.translate(_BY_COLON)):
        rules += _V6
    return rules
