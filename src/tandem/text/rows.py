"""The rule that turns a record of a data set (a JSON object, a table row) into the text of a document."""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from tandem.errors import DataError

SHOWN, SHOWN_CHARACTERS = 20, 60
"""A message names so many columns or fields, and so much of each."""


def text_column(columns: Sequence[str], where: str) -> str:
    """The column of a table that holds documents. Raises DataError where there is none."""
    if column := next((name for name in ("text", "messages") if name in columns), None):
        return column
    found = _shown(columns)
    raise DataError(f"{where} has neither a column 'text' nor 'messages' (columns found: {found})")


def _shown(names: Collection[object]) -> str:
    """Names of columns or fields; of many the first few, and of long ones the beginning."""
    first = ", ".join(repr(str(name)[:SHOWN_CHARACTERS]) for name in islice(names, SHOWN))
    more = len(names) - SHOWN
    return f"{first} and {more:,} more" if more > 0 else first or "none"


def record_text(record: object, where: str, field: str | None = None) -> str:
    """The document in `record`: its `text`, or the contents of its `messages` joined by one newline.

    With `field` it is the string of that name. `where` names the record in errors (file and line, or data set
    and row). Raises DataError if the record has none, or if the text cannot be written as UTF-8.
    """
    fields = record if isinstance(record, Mapping) else {}
    contents: list[object] = [fields.get(field or "text")]
    if field is None and "text" not in fields and isinstance(messages := fields.get("messages"), list):
        contents = [one.get("content") if isinstance(one, Mapping) else None for one in messages]
    texts = [one for one in contents if isinstance(one, str)]
    if len(texts) < len(contents):
        found = _shown(fields)
        if field is not None:
            raise DataError(f"{where} has no field {field!r} with a string in it (fields found: {found})")
        raise DataError(
            f"{where} holds no document (fields found: {found}); give an object with a string 'text', or "
            "with 'messages', a list of objects that each have a string 'content'"
        )
    text = "\n".join(texts)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character ({text[error.start]!a}, a lone surrogate), which UTF-8 cannot "
            "express; mend or remove that record"
        ) from None
    return text
