"""A TCP proxy in front of PostgreSQL, to do to connections what networks do: cut, held up, answers lost, half-open."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_ref.harness.server import free_port


@dataclass(eq=False)
class _Pair:
    """A client's connection and ours to the server for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    half_open: bool = False

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Listens on 127.0.0.1 for `dsn`'s server; `dsn` of the proxy leads through it. What was broken stays so until
    `mend()`. A context manager. Its event loop has a thread of its own; call it from any other."""

    def __init__(self, dsn: str) -> None:
        server = conninfo_to_dict(dsn)
        self._target, port = (str(server["host"]), int(server["port"])), free_port()
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=port)
        self._pairs: set[_Pair] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._refuses = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._listener = self._call(self._listen(port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._call(self._cut(refuse=True))

    def reset(self) -> None:
        """Reset every connection; new ones are served."""
        self._call(self._cut(refuse=False))

    def hold(self) -> None:
        """Let nothing pass, either way: it arrives when this is mended."""
        self._call(self._set(requests=False, answers=False))

    def hold_answers(self) -> None:
        """Let requests pass and no answer: the server does what it is asked, and nobody learns of it."""
        self._call(self._set(requests=True, answers=False))

    def half_open(self) -> int:
        """Let the connections that there are swallow everything for ever, without a word to either side; new ones are
        served. Returns how many."""
        return int(self._call(self._swallow()))

    def mend(self) -> None:
        """Let everything pass that is not lost."""
        self._call(self._set(requests=True, answers=True))

    def close(self) -> None:
        """Reset everything and end."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self, port: int) -> asyncio.Server:
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        await self._set(requests=True, answers=True)
        return await asyncio.start_server(self._accept, "127.0.0.1", port)

    async def _set(self, *, requests: bool, answers: bool) -> None:
        self._refuses = False
        for event, passes in ((self._requests, requests), (self._answers, answers)):
            event.set() if passes else event.clear()

    async def _cut(self, *, refuse: bool) -> None:
        self._refuses = refuse
        for pair in self._pairs:
            pair.abort()

    async def _swallow(self) -> int:
        for pair in self._pairs:
            pair.half_open = True
        return len(self._pairs)

    async def _close(self) -> None:
        self._listener.close()
        await self._cut(refuse=True)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            return
        answers, server = await asyncio.open_connection(*self._target)
        pair = _Pair(writer, server)
        self._pairs.add(pair)
        try:
            pumps = [
                asyncio.create_task(self._pump(pair, reader, server, self._requests)),
                asyncio.create_task(self._pump(pair, answers, writer, self._answers)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._pairs.discard(pair)
            server.close()  # after what is still to be sent
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _pump(
        self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        while data := await source.read(65536):
            await passes.wait()
            if not pair.half_open:
                sink.write(data)
                await sink.drain()
