"""What may stand in a path where a job's id or a queue's name does, beyond what Starlette's own convertors match."""

from __future__ import annotations

from starlette.convertors import StringConvertor, register_url_convertor


class _Job(StringConvertor):
    """Anything but `batch`. If it were digits alone, a mistyped id would be a path that does not exist."""

    regex = "(?!batch$)[^/]+"


class _Queue(StringConvertor):
    """Anything: a queue's name may have slashes and line breaks in it."""

    regex = r"[\s\S]+"


register_url_convertor("job", _Job())
register_url_convertor("queue", _Queue())
