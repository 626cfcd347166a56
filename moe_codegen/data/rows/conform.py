"""One batch of a source's columns -> one batch of ours: types checked, nulls and odd encodings of lists resolved.

`content` stays binary here: whether it is text is a question for each row, not for the whole column.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_codegen.data.rows.schema import MEASURED, Layout, missing_text
from moe_codegen.errors import ColumnError
from moe_codegen.languages import canonical_language, language_of_path

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
_VIEW = (pa.types.is_string_view, pa.types.is_binary_view)
_NUMBER = (pa.types.is_integer, pa.types.is_floating)


def conform(source: pa.RecordBatch, layout: Layout, origin: str) -> pa.RecordBatch:
    """`source` in our columns (`layout.schema`, with `content` as binary); missing ones are null.

    A column of type null is a column of nulls. Raises `ColumnError` for a type that cannot be ours.
    """
    columns = {name: _plain(source.column(name)) for name in source.schema.names}
    rows = source.num_rows
    arrays: list[pa.Array] = []
    for field in layout.schema:
        names = layout.sources(field.name) if field.name not in layout.carried else (field.name,)
        found = [
            (name, columns[name]) for name in names if name in columns and not pa.types.is_null(columns[name].type)
        ]
        if field.name == "content":
            if not any(name in columns for name in names):
                raise missing_text(list(columns), origin)
            arrays.append(_text(*found[0], origin).cast(pa.binary()) if found else pa.nulls(rows, pa.binary()))
        elif not found or (field.name in MEASURED and not _is(found[0][1], _NUMBER)):
            arrays.append(pa.nulls(rows, field.type))
        elif field.name == "licenses":
            arrays.append(_join_lists([_licenses(name, array, origin) for name, array in found]))
        elif pa.types.is_string(field.type):
            arrays.append(_valid_text(*found[0], origin))
        else:
            arrays.append(_number(*found[0], origin).cast(field.type, safe=False))
    by_name = dict(zip(layout.schema.names, arrays, strict=True))
    by_name["language"] = _language(by_name["language"], by_name["path"], layout.language)
    by_name["stars"] = pc.fill_null(by_name["stars"], 0)
    return pa.RecordBatch.from_arrays(list(by_name.values()), names=list(by_name))


def _plain(array: pa.Array) -> pa.Array:
    """Values one after the other, of what is encoded as a dictionary or as views."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.large_binary()) if _is(array, _VIEW) else array


def _is(array: pa.Array, kinds: tuple) -> bool:
    return any(kind(array.type) for kind in kinds)


def _expect(name: str, array: pa.Array, kinds: tuple, expected: str, origin: str) -> pa.Array:
    if not _is(array, kinds):
        raise ColumnError(f"column `{name}` should be {expected}, found {array.type}, in {origin}")
    return array


def _text(name: str, array: pa.Array, origin: str) -> pa.Array:
    return _expect(name, array, _TEXT, "string", origin)


def _number(name: str, array: pa.Array, origin: str) -> pa.Array:
    """A column of numbers; NaN, as pandas stores a missing one, is null."""
    numbers = _expect(name, array, _NUMBER, "a number", origin)
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def _valid_text(name: str, array: pa.Array, origin: str) -> pa.Array:
    """A column of names: bytes that are not UTF-8 are replaced, since only `content` is worth a dropped row."""
    array = _text(name, array, origin).cast(pa.binary())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        rows = [None if row is None else row.decode("utf-8", "replace") for row in array.to_pylist()]
        return pa.array(rows, pa.string())


def _licenses(name: str, array: pa.Array, origin: str) -> pa.Array:
    """list<string>, a single string, or BigQuery's `{"list": [{"item": ...}]}` -> list<string>."""
    if _is(array, _TEXT):
        text = _valid_text(name, array, origin)
        offsets = np.concatenate([[0], np.cumsum(pc.is_valid(text).to_numpy(zero_copy_only=False))]).astype(np.int32)
        return _list_array(offsets, pc.drop_null(text), text.is_null())
    nulls = array.is_null()
    if pa.types.is_struct(array.type) and array.type.get_field_index("list") >= 0:
        array = pc.struct_field(array, "list")
        nulls = array.is_null()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        values = pc.list_flatten(array)
        if pa.types.is_struct(values.type) and values.type.num_fields == 1:
            values = pc.struct_field(values, 0)
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        if pa.types.is_null(values.type):
            values = values.cast(pa.string())
        values = _valid_text(name, _plain(values), origin)
        return _list_array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values, nulls)
    raise ColumnError(f"column `{name}` should be a list of strings, found {array.type}, in {origin}")


def _list_array(offsets: np.ndarray, values: pa.Array, nulls: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=nulls)


def _join_lists(lists: list[pa.Array]) -> pa.Array:
    """Row by row, the values of all the lists without repetition; null where all are null."""
    if len(lists) == 1:
        return lists[0]
    joined = []
    for row in zip(*(one.to_pylist() for one in lists), strict=True):
        known = [values for values in row if values is not None]
        joined.append(list(dict.fromkeys(value for values in known for value in values)) if known else None)
    return pa.array(joined, pa.list_(pa.string()))


def _language(language: pa.Array, path: pa.Array, default: str | None) -> pa.Array:
    """Our spelling of the given language; where none is given the default, and else what the file's name says."""
    if pc.any(pc.equal(language, "")).as_py():
        language = pc.if_else(pc.equal(language, ""), None, language)
    if default:
        language = language.fill_null(default)
    spelled = {name: canonical_language(name) for name in language.unique().to_pylist() if name is not None}
    if not language.null_count:
        if all(ours == name for name, ours in spelled.items()):
            return language
        return pa.array([spelled[name] for name in language.to_pylist()], pa.string())
    rows = zip(language.to_pylist(), path.to_pylist(), strict=True)
    return pa.array(
        [spelled[name] if name else (language_of_path(where) if where else None) for name, where in rows], pa.string()
    )
