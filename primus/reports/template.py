"""Pages from the templates beside this file."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from primus.reports.formats import FILTERS


def render_template(name: str, **values: Any) -> str:
    """The whole page; every value is escaped, figures that come as markup are passed through."""
    environment = Environment(
        loader=PackageLoader("primus.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(FILTERS)
    return environment.get_template(name).render(**values)
