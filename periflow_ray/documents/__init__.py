"""Stored documents: JSON objects that one version of periflow-ray writes and another one reads.

Everything that is kept as a document, in a storage root or on this machine, is written and read here. A reader ignores
fields that it does not know, at every level, and names those that are missing together with the document. Each document
carries the number of its kind's format; one without a number has format 1.

How a kind of document may change:

- A field may come, if it has a default that is right where the field is missing. Older versions ignore it, and drop it
  when they write the document again. The number stays.
- A field may go, if it had a default: older versions need all others. The number stays.
- Only a change that would make an older version read something wrong raises the number: the kind gets
  ``FORMAT: ClassVar[int]``, one higher, and ``FORMAT_SINCE: ClassVar[str]``, the first version that reads it. Older
  versions then refuse the document and name that version, so this is the last resort. The new version still reads
  the older formats.

A kind that is a list (the files of a dataset, a line of metrics) has no place for a number. Should its format ever have
to change, it becomes an object with one, which the readers of today know how to refuse.

Builds of 0.1.0 from before this module refuse every field that they do not know, and so the number, too.
"""

from __future__ import annotations

from periflow_ray.documents.text import (
    check_format,
    dump_document,
    format_of,
    parse_document,
    parse_entries,
    parse_fields,
)

__all__ = [
    "check_format",
    "dump_document",
    "format_of",
    "parse_document",
    "parse_entries",
    "parse_fields",
]
