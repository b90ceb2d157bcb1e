"""A page on this machine alone: the same row or text, answered by the base and by several runs."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tsugiki.errors import ConfigError, TsugikiError, how_to_install
from tsugiki.report.page import template
from tsugiki.words import Language, Message, called, say

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from tsugiki.runs.side_by_side import SideBySide

HOST = "127.0.0.1"
MOST_BYTES = 200_000
HEADERS = {
    # No script runs, nothing is fetched, and no other page may frame or read it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def app_of(runs: SideBySide, language: Language) -> Starlette:
    """The page as a Starlette application; it answers to names of this machine alone.

    Raises:
        ConfigError: starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import HTMLResponse
        from starlette.routing import Route
    except ImportError:
        install = how_to_install("starlette", "uvicorn")
        raise ConfigError(Message("error.needs_server", install=install)) from None
    one_at_a_time = Lock()

    def page(given: dict[str, str], status: int = 200, **more: Any) -> Response:
        text = template("try.html.j2").render(
            lang=language,
            task=runs.task.name,
            fields=runs.task.spec.fields,
            given=given,
            say=lambda key, **values: say(language, key, **values),
            failure=lambda name: called(language, "failure", name),
            **more,
        )
        return HTMLResponse(text, status_code=status, headers=HEADERS)

    def answered(given: dict[str, str]) -> Response:
        try:
            with one_at_a_time:
                if given.get("kind") == "text":
                    return page(given, said=runs.text(given.get("text", "")))
                fields = {name: given.get(f"field:{name}", "") for name in runs.task.spec.fields}
                prompt, said = runs.row(fields)
                return page(given, said=said, prompt=prompt)
        except TsugikiError as error:
            return page(given, status=400, error=str(error))

    async def root(request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        if request.method == "GET":
            return page({})
        origin = request.headers.get("origin")
        # "null" is what a page in a frame without rights sends.
        if origin is not None and urlsplit(origin).netloc != request.url.netloc:
            return page({}, status=403, error=say(language, "try_page.elsewhere"))
        content = await request.body()
        if len(content) > MOST_BYTES:
            return page({}, status=413, error=say(language, "try_page.long"))
        pairs = parse_qs(content.decode("utf-8", "replace"), keep_blank_values=True)
        given = {name: values[0].replace("\r\n", "\n") for name, values in pairs.items()}
        return await run_in_threadpool(answered, given)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=[Route("/", root, methods=["GET", "POST"])], middleware=[hosts])


def serve(runs: SideBySide, language: Language, port: int, spoken: Language) -> None:
    """Serves the page until Ctrl-C; its address is printed in the language `spoken`."""
    app = app_of(runs, language)
    import uvicorn

    print(say(spoken, "terminal.serving", address=f"http://{HOST}:{port}/"), flush=True)
    uvicorn.run(app, host=HOST, port=port, log_level="warning", server_header=False)
