"""Rules that find secrets: the patterns of detect-secrets, and a few that it lacks."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Final

from hivemind.servers.common.redaction_rule import Rule


@dataclass(frozen=True, slots=True)
class _Detector:
    """A detector of detect-secrets: its module and class, what it finds, and see Rule.

    `group` is 1 where its patterns hold the name of a variable or of a user too.
    """

    module: str
    name: str
    kind: str
    needs: tuple[str, ...]
    group: int = 0
    length: Callable[[str], int] = len


def _with_digit(text: str) -> int:
    return len(text) if any(c.isdigit() for c in text) else 0


def _with_digit_and_letter(text: str) -> int:
    return _with_digit(text) if any(c.isalpha() for c in text) else 0


_GITLAB: Final = (
    "glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "gr1348941", "glcbt-", "glimt-", "glptt-", "glagent-", "gloas-",
)  # fmt: skip
# Not its detectors of names and values (cloudant, ibm_cloud_iam, keyword, npm, softlayer): their time grows with the
# square of a text that was made to that end. Our own rules below look at a bounded part behind a name.
_DETECTORS: Final = (
    # words in capitals have the form of its passwords, so a digit is asked for
    _Detector("artifactory", "ArtifactoryDetector", "ARTIFACTORY_KEY", ("akc", "ap"), length=_with_digit),
    _Detector("aws", "AWSKeyDetector", "AWS_KEY", ("a3t", "abia", "acca", "akia", "asia", "aws"), group=1),
    _Detector("azure_storage_key", "AzureStorageKeyDetector", "AZURE_KEY", ("accountkey=",)),
    _Detector("basic_auth", "BasicAuthDetector", "PASSWORD", ("://",), group=1),
    _Detector("discord", "DiscordBotTokenDetector", "DISCORD_TOKEN", (".",)),
    _Detector("github_token", "GitHubTokenDetector", "GITHUB_TOKEN", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    _Detector("gitlab_token", "GitLabTokenDetector", "GITLAB_TOKEN", _GITLAB),
    _Detector("mailchimp", "MailchimpDetector", "MAILCHIMP_KEY", ("-us",)),
    _Detector("openai", "OpenAIDetector", "API_KEY", ("t3blbkfj",)),
    _Detector("pypi_token", "PypiTokenDetector", "PYPI_TOKEN", ("pypi-ag",)),
    _Detector("sendgrid", "SendGridDetector", "SENDGRID_KEY", ("sg.",)),
    _Detector("slack", "SlackDetector", "SLACK_TOKEN", ("xox", "hooks.slack")),
    _Detector("square_oauth", "SquareOAuthDetector", "SQUARE_SECRET", ("sq0csp-",)),
    _Detector("stripe", "StripeDetector", "STRIPE_KEY", ("k_live_",)),
    _Detector("telegram_token", "TelegramBotTokenDetector", "TELEGRAM_TOKEN", (":aa",)),
    _Detector("twilio", "TwilioKeyDetector", "TWILIO_KEY", ("ac", "sk"), length=_with_digit),
)

_PASSWORDS: Final = ("password", "passwd", "passphrase", "pwd")
_KEYS: Final = tuple(
    f"{kind}{joint}key"
    for kind in ("api", "auth", "access", "account", "private", "service", "client", "db")
    for joint in ("_", "-", " ", "")
)
_NAMES: Final = (*_PASSWORDS, "secret", "token", *_KEYS)
_SET_TO: Final = r"[\w-]{0,20}[\"']?\]?[ \t]{0,4}(?::=|=>|={1,3}|:|\bis\b)[ \t]{0,4}"
_BARE: Final = r"[^\s\"'`,;<>(){}\[\]]"
_QUOTED: Final = r"([\"'`])([^\s\"'`]{6,200})\1"
_TOKEN: Final = r"([\w+/=.-]{16,200})(?![(\[{\w])"
_PRIVATE_KEY: Final = r"(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"


def _any_of(words: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(words)})"


def _named(kind: str, names: tuple[str, ...], value: str, group: int, length: Callable[[str], int]) -> Rule:
    """A rule for a value that a name is set to."""
    pattern = re.compile(_any_of(names) + _SET_TO + value, re.ASCII | re.IGNORECASE)
    return Rule(kind, pattern, names, group, length, before=0)


_OWN: Final = (
    Rule(
        "PRIVATE_KEY",
        re.compile(rf"-----BEGIN {_PRIVATE_KEY}.*?(?:-----END {_PRIVATE_KEY}|\Z)", re.DOTALL),
        ("-----begin ",),
    ),
    Rule("PRIVATE_KEY", re.compile(r"PuTTY-User-Key-File-\d:.*?(?:Private-MAC: \w+|\Z)", re.DOTALL), ("putty-user",)),
    # with the signature, which detect-secrets' pattern leaves standing
    Rule("JWT", re.compile(r"(?<![\w-])eyJ[\w=-]{8,}\.[\w=-]{8,}(?:\.[\w.+/=-]*)?", re.ASCII), ("eyj",)),
    Rule("API_KEY", re.compile(r"(?<![\w-])sk-[\w-]{20,}", re.ASCII), ("sk-",), length=_with_digit),
    Rule("API_KEY", re.compile(r"(?<![\w-])(?:AIza[\w-]{35}|(?:hf|gsk)_[A-Za-z0-9]{30,})"), ("aiza", "hf_", "gsk_")),
    Rule("GITHUB_TOKEN", re.compile(r"(?<![\w-])github_pat_\w{30,}", re.ASCII), ("github_pat_",)),
    Rule("NPM_TOKEN", re.compile(r":_authToken[ \t]{0,4}=[ \t]{0,4}([\w-]{20,200})", re.ASCII), (":_authtoken",), 1),
    Rule("TOKEN", re.compile(r"\bbearer[ \t]{1,4}([\w.~+/=-]{16,})", re.ASCII | re.I), ("bearer",), 1, _with_digit, 0),
    _named("PASSWORD", _PASSWORDS, _QUOTED, 2, len),
    _named("SECRET", _NAMES, _QUOTED, 2, _with_digit),
    _named("PASSWORD", _PASSWORDS, rf"((?![/~$%]){_BARE}{{6,200}})(?![(\[{{\w])", 1, _with_digit_and_letter),
    _named("SECRET", _NAMES, _TOKEN, 1, _with_digit_and_letter),
    _named("SECRET", ("key",), r"[\"'`]?([\w+/=-]{32,200})(?![(\[{\w])", 1, _with_digit_and_letter),
)


@cache
def _rules() -> tuple[Rule, ...]:
    found: list[Rule] = []
    for detector in _DETECTORS:
        module = import_module(f"detect_secrets.plugins.{detector.module}")
        for pattern in getattr(module, detector.name).denylist:
            group = min(detector.group, pattern.groups)
            words = tuple(w for w in detector.needs if w in pattern.pattern.lower()) or detector.needs
            found.append(Rule(detector.kind, pattern, words, group, detector.length))
    return (*found, *_OWN)


_IN_SECRETS: Final = re.compile(rb"[A-Za-z0-9_+/=.:-]")
_RUNS: Final = bytes(ord("x") if _IN_SECRETS.match(bytes((i,))) else ord(" ") for i in range(256))
_LONG_RUN: Final = b"x" * 16
_LOUD: Final = (b"passw", b"pwd", b"passphrase", b"secret", b"key", b"token", b"://")


def secret_rules(data: bytes) -> tuple[Rule, ...]:
    """The rules that may match the UTF-8 `data`; to look takes some microseconds a kB.

    The first text that may hold a secret imports detect-secrets, which takes a fifth of a second.
    """
    if _LONG_RUN in data.translate(_RUNS):
        return _rules()
    lowered = data.lower()
    return _rules() if any(word in lowered for word in _LOUD) else ()
