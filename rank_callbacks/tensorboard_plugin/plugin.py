"""The Ranks tab: its entry in TensorBoard, and the addresses that its page asks."""

from __future__ import annotations

import functools
import gzip
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from rank_callbacks.tensorboard_plugin.choice import Choice, ChoiceError

if TYPE_CHECKING:
    from rank_callbacks.tensorboard_plugin.listing import Listing
    from rank_callbacks.tensorboard_plugin.series import Logs

__all__ = ["RanksLoader", "RanksPlugin"]

# Equal to listing.PLUGIN_NAME and to what the writer puts on spectra. Nothing that takes time is imported at the
# top: a user who never opens the tab does not wait for it.
_NAME = "rank_callbacks"
_STATIC = Path(__file__).with_name("static")
_FILES = {
    "index.js": "text/javascript",
    "address.js": "text/javascript",
    "reload.js": "text/javascript",
    "theme.js": "text/javascript",
    "style.css": "text/css",
}
# TensorBoard keeps 10 tensors of a series, or 100 in its fast mode. So many spectra of 512 values are 1 MB a layer.
_SPECTRA_KEPT = 500
_SECONDS_OF_A_LISTING = 10.0
# Plotly changes only when the user installs another.
_A_DAY = 24 * 3600
_logger = logging.getLogger(__name__)

Answer: TypeAlias = "Callable[[RanksPlugin, wrappers.Request], wrappers.Response]"


class RanksLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """What the entry point names: TensorBoard gets the tab from it, or goes on without."""

    def fix_flags(self, flags: Any) -> None:  # ruff: ignore[any-type]
        """Have more spectra kept than TensorBoard keeps of tensors, unless the user says otherwise."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(_NAME, _SPECTRA_KEPT)

    def load(self, context: Any) -> RanksPlugin | None:  # ruff: ignore[any-type]
        """The tab, or None if it cannot be made: TensorBoard then starts without it."""
        try:
            return RanksPlugin(context)
        except Exception:
            _logger.exception("The Ranks tab is left out.")
            return None


def _answered(answer: Answer) -> Answer:
    """A failure told to the page, which shows it, rather than to TensorBoard."""

    @functools.wraps(answer)
    def safely(plugin: RanksPlugin, request: wrappers.Request) -> wrappers.Response:
        try:
            return answer(plugin, request)
        except ChoiceError as failure:
            return _json(request, {"error": str(failure)}, code=400)
        except Exception as failure:
            _logger.exception("The Ranks tab could not answer %s.", request.full_path)
            return _json(request, {"error": f"{type(failure).__name__}: {failure}"}, code=500)

    return safely


class RanksPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Answers the page of the Ranks tab with lists, charts and files; reads only through TensorBoard's data provider.

    Args:
        context: What TensorBoard gives every plugin.
    """

    plugin_name = _NAME

    def __init__(self, context: Any) -> None:  # ruff: ignore[any-type]
        super().__init__(context)
        self._provider = context.data_provider
        self._listings: dict[str, tuple[float, Listing]] = {}

    def get_plugin_apps(self) -> dict[str, Any]:
        """Addresses below ``data/plugin/rank_callbacks``."""
        answers = {
            "/index": self.index,
            "/figure": self.figure,
            "/csv": self.csv,
            "/static/*": self.static,
        }
        return {address: wrappers.Request.application(answer) for address, answer in answers.items()}

    def is_active(self) -> bool:
        """Whether a monitor has logged anything. TensorBoard asks only where there are no spectra of ours."""
        from rank_callbacks.tensorboard_plugin.listing import read_listing

        return bool(read_listing(self._provider, RequestContext(), "").runs)

    def frontend_metadata(self) -> Any:  # ruff: ignore[any-type]
        """The tab's title and its page."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Ranks")

    @_answered
    def index(self, request: wrappers.Request) -> wrappers.Response:
        """Runs, measures, layers and hyperparameters that there are to choose from."""
        from rank_callbacks.tensorboard_plugin.choices import choices

        return _json(request, choices(self._logs(request, fresh=True).listing))

    @_answered
    def figure(self, request: wrappers.Request) -> wrappers.Response:
        """One view: a plotly figure, or findings, and how to read it."""
        from rank_callbacks.tensorboard_plugin.views import view

        return _json(request, view(self._logs(request), Choice.of(request.args)))

    @_answered
    def csv(self, request: wrappers.Request) -> wrappers.Response:
        """The readings behind a view, all steps of them: run, step, tag, value."""
        from rank_callbacks.tensorboard_plugin.views import table

        text = table(self._logs(request), Choice.of(request.args))
        return http_util.Respond(request, text, "text/csv")

    @_answered
    def static(self, request: wrappers.Request) -> wrappers.Response:
        """The page's script and style, and plotly's from the installed package."""
        name = request.path.rpartition("/static/")[2]
        if name == "plotly.min.js":
            return http_util.Respond(request, _plotly(), "text/javascript", expires=_A_DAY, content_encoding="gzip")
        if name not in _FILES:
            return _json(request, {"error": f"Expected one of {', '.join(_FILES)}, got {name}."}, code=404)
        return http_util.Respond(request, (_STATIC / name).read_bytes(), _FILES[name])

    def _logs(self, request: wrappers.Request, fresh: bool = False) -> Logs:
        """The logs, with names that are at most ten seconds old: the page asks for them on every reload."""
        from rank_callbacks.tensorboard_plugin.listing import read_listing
        from rank_callbacks.tensorboard_plugin.series import Logs

        context, experiment = plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)
        then, listing = self._listings.get(experiment, (0.0, None))
        if fresh or listing is None or time.monotonic() - then > _SECONDS_OF_A_LISTING:
            listing = read_listing(self._provider, context, experiment)
            self._listings[experiment] = (time.monotonic(), listing)
        return Logs(self._provider, context, experiment, listing)


@functools.cache
def _plotly() -> bytes:
    """Plotly's JavaScript, found without importing plotly, and compressed once."""
    from importlib.util import find_spec

    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise ImportError("The Ranks tab draws with plotly. Install it with: pip install plotly")
    return gzip.compress(
        (Path(package.origin).parent / "package_data" / "plotly.min.js").read_bytes(), compresslevel=3, mtime=0
    )


def _json(request: wrappers.Request, content: object, code: int = 200) -> wrappers.Response:
    """Strict JSON, which json.dumps would break for NaN."""
    return http_util.Respond(request, json.dumps(content, allow_nan=False), "application/json", code=code)
