"""The rule that turns a record of a data set (a JSON object, a table row) into the text of a document."""

from collections.abc import Mapping, Sequence

from tandem.errors import DataError


def text_column(columns: Sequence[str], where: str) -> str:
    """The column of a table that holds documents. Raises DataError where there is none."""
    if column := next((name for name in ("text", "messages") if name in columns), None):
        return column
    found = ", ".join(map(repr, columns)) or "none"
    raise DataError(f"{where} has neither a column 'text' nor 'messages' (columns found: {found})")


def record_text(record: object, where: str) -> str:
    """The document in `record`: its `text`, or the contents of its `messages` joined by one newline.

    `where` names the record in errors (file and line, or data set and row). Raises DataError if the record
    has neither field, if a field has the wrong type, or if the text cannot be written as UTF-8.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is {_kind(record)}, but must be an object with 'text' or 'messages'")
    if "text" in record:
        text = record["text"]
        if not isinstance(text, str):
            raise DataError(f"{where}: 'text' is {_kind(text)}, but must be a string")
    elif "messages" in record:
        text = _join_messages(record["messages"], where)
    else:
        found = ", ".join(repr(key) for key in record) or "none"
        raise DataError(
            f"{where} has neither 'text' nor 'messages' (fields found: {found}); rename the field"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character ({text[error.start]!a}, a lone surrogate), which UTF-8 cannot "
            "express; mend or remove that record"
        ) from None
    return text


def _join_messages(messages: object, where: str) -> str:
    if not isinstance(messages, list):
        raise DataError(
            f"{where}: 'messages' is {_kind(messages)}, but must be a list of objects with 'content'"
        )
    contents = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise DataError(f"{where}: message {number} must be an object whose 'content' is a string")
        contents.append(message["content"])
    return "\n".join(contents)


def _kind(value: object) -> str:
    """A JSON value's kind, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(
        type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    )
