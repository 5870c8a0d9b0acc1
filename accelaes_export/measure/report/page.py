"""One HTML file out of a template and data: everything inside, every text escaped, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from accelaes_export.measure.report import formats

_SCRIPT, _STYLE = "page.js", "page.css"


def render(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """The page of `template` (a file in templates/) with `values`; `data` is embedded in it as JSON.

    The page's own security policy allows pictures inside the file and this one script, whatever a text says.
    """
    environment = _environment()
    script, style = (_source(environment, name) for name in (_SCRIPT, _STYLE))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        # Files of this project's own.
        script=Markup(script),
        style=Markup(style),
        script_digest=digest,
        data=embedded_json(data),
        **values,
    )


def embedded_json(data: Any) -> Markup:
    """`data` as JSON that may stand in a script element: no text in it can end the element or begin another."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("accelaes_export.measure.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        significant=formats.significant,
        ms=formats.milliseconds,
        ratio=formats.ratio,
        share=formats.share,
        plain=formats.plain,
        interval=formats.interval,
        machine_facts=formats.machine_facts,
        pretty=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
