"""What the page's file is made of: templates, style, script, the charts' library, and data that cannot harm."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dualtail import __version__
from dualtail.report.report_table import format_interval, format_value, number
from dualtail.report.words import GROUP_TITLES

LIBRARY_BYTES = 2_200_000
"""What the charts' library takes of the file, packed."""


def render(**content: Any) -> str:
    """Return the page of ``content``, what ``page.html.j2`` asks for beyond the assets."""
    script = _asset("app.js")
    library, library_hash = _chart_library()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            style=Markup(_asset("style.css")),
            script=Markup(script),
            script_hash=_csp_hash(script),
            library=Markup(library),
            library_hash=library_hash,
            **content,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dualtail.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "value": format_value,
        "interval": format_interval,
        "number": number,
        "group_titles": list(GROUP_TITLES.values()),
    }
    return environment


def _asset(name: str) -> str:
    return (files("dualtail.report") / "templates" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _chart_library() -> tuple[str, str]:
    """Return Plotly's script, packed (gzip, base64), and its hash for the content security policy."""
    script = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    packed = base64.b64encode(gzip.compress(script, 6, mtime=0)).decode("ascii")
    return packed, _csp_hash(script.decode("utf-8"))


def _csp_hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"


def embed_json(content: Any) -> Markup:
    """Return JSON that cannot end the script element that it is put into.

    Example:
        >>> print(embed_json({"name": "</script><b>&"}))
        {"name":"\\u003c/script\\u003e\\u003cb\\u003e\\u0026"}
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
