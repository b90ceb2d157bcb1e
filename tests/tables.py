"""Tables of a report as a reader sees them, for tests."""

from __future__ import annotations

from tsugiki.report.material import Material
from tsugiki.report.table import InWords
from tsugiki.report.tables import all_tables
from tsugiki.report.words import Language


def in_words(material: Material, language: Language = "en") -> list[InWords]:
    """Every table of a report, all text."""
    return [table.in_words(language) for table in all_tables(material)]
