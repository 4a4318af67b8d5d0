"""What may stand in a path where a job's id or a queue's name does, beyond what Starlette's own convertors match."""

from __future__ import annotations

from starlette.convertors import StringConvertor, register_url_convertor


class _Job(StringConvertor):
    """Anything but `batch`. If it were digits alone, a mistyped id would be a path that does not exist."""

    regex = "(?!batch$)[^/]+"


class _Queue(StringConvertor):
    """Anything: a queue's name may have slashes and line breaks in it."""

    regex = r"[\s\S]+"


class _Schedule(StringConvertor):
    """As a queue's name, but not one that ends like what is done to a schedule: its path would be taken for that."""

    regex = r"(?![\s\S]*/(?:pause|resume|run)$)[\s\S]+"


register_url_convertor("job", _Job())
register_url_convertor("queue", _Queue())
register_url_convertor("schedule", _Schedule())
