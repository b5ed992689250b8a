"""Turns templates into HTML: one Jinja environment for each language, made once at start."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from keibi.manager.console import error_words
from keibi.manager.console.agent_words import said
from keibi.manager.console.assets import Assets, load_assets
from keibi.manager.console.labels import label, module_title
from keibi.manager.console.language import LANGUAGES, Catalogue, load_catalogue
from keibi.manager.console.sentences import sentence

TEMPLATE_DIRECTORY = pathlib.Path(__file__).with_name("templates")


class View:
    """The templates with all that they may use."""

    def __init__(self, assets: Assets, catalogues: Mapping[str, Catalogue], now: Callable[[], float] = time.time) -> None:
        self.assets = assets
        self.catalogues = catalogues
        self.now = now
        # One environment for each language: overlays share their globals, so the second language would overwrite the first.
        self._environments = {language: self._environment(catalogue) for language, catalogue in catalogues.items()}

    def render(self, language: str, template: str, values: Mapping[str, Any]) -> str:
        """Return the template as HTML."""
        return self._environments[language].get_template(template).render(values)

    def _environment(self, catalogue: Catalogue) -> jinja2.Environment:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATE_DIRECTORY),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            extensions=["jinja2.ext.i18n", "jinja2.ext.do"],
        )
        environment.install_gettext_callables(  # type: ignore[attr-defined]
            catalogue.gettext, catalogue.ngettext, newstyle=True
        )
        environment.globals.update(
            asset=self.assets.address,
            icon=self.assets.icon,
            severity_mark=self.assets.severity_mark,
            health_mark=self.assets.health_mark,
            language=catalogue.language,
            label=lambda group, value: label(catalogue, group, value),
            module_title=lambda module: module_title(catalogue, module),
            said=lambda text: said(catalogue, str(text)),
            told=lambda error: error_words.told(catalogue, error),
            hint_of=lambda error: error_words.hint(catalogue, error),
            sentence=lambda event, details=None: sentence(catalogue, event, details),
        )
        return environment


def load_view() -> View:
    """Read templates, catalogues and static files."""
    return View(load_assets(), {language: load_catalogue(language) for language in LANGUAGES})
