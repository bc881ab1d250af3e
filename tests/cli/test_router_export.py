"""hivemind router export: whole files or none."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from hivemind.cli.home import CommandError
from hivemind.cli.router_export import export


class Pages:
    """Three records of two tenants, one a page; the last page fails where told so."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.breaks = breaks
        self.rows = [
            {"request_id": f"r{i}", "tenant": t, "feedback": [{"demonstration": "Käse"}]} for i, t in enumerate("aba")
        ]

    def get(self, path: str) -> Any:
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        rows = [r for r in self.rows if query["tenant"][0] in ("", r["tenant"])]
        place = int(query["page_token"][0] or 0)
        if self.breaks and place + 1 == len(rows):
            raise CommandError("no mesh answers")
        more = place + 1 < len(rows)
        return {"requests": rows[place : place + 1], "next_page_token": str(place + 1) if more else ""}


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_every_page_is_written_a_record_a_line_with_its_feedback(tmp_path: Path) -> None:
    pages = Pages()

    assert export(pages, tmp_path / "out.jsonl", tenant="") == 3
    assert lines_of(tmp_path / "out.jsonl") == pages.rows


def test_only_one_tenants_records_are_written_where_one_is_named(tmp_path: Path) -> None:
    assert export(Pages(), tmp_path / "out.jsonl", tenant="a") == 2
    assert {r["tenant"] for r in lines_of(tmp_path / "out.jsonl")} == {"a"}


def test_an_export_that_breaks_leaves_the_file_of_before(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("before\n")

    with pytest.raises(CommandError):
        export(Pages(breaks=True), file, tenant="")

    assert file.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no-such-folder"):
        export(Pages(), tmp_path / "no-such-folder" / "out.jsonl", tenant="")
