"""Every suffix, with and without an engine, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import warnings
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from nantrace.errors import RenderError
from nantrace.model import Snapshot
from nantrace.rendering import drawing, render
from nantrace.rendering.drawing import draw

from .born_in_ops import gan_log, sqrt_backward
from .hostile import hostile
from .scenes import REPORTS

DRAWS = shutil.which("dot") is not None or find_spec("pygraphviz") is not None
needs_engine = pytest.mark.skipif(not DRAWS, reason="needs Graphviz or pygraphviz")
STARTS = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}


def slow_engine(kind: str) -> list[list[str]]:
    return [[sys.executable, "-c", "import time; time.sleep(30)"]]


def picky_engine(kind: str) -> list[list[str]]:
    """Draws a coarse graph at once, and any other never."""
    code = "import sys, time; 'coarse' in sys.stdin.read() or time.sleep(30); print('<svg/>')"
    return [[sys.executable, "-c", code]]


@needs_engine
@pytest.mark.parametrize("suffix", STARTS)
def test_pictures(suffix: str, tmp_path: Path) -> None:
    """Each kind of picture is written as what its suffix says."""
    path = tmp_path / f"graph{suffix}"

    assert render(gan_log(), path) == str(path)
    assert path.read_bytes().startswith(STARTS[suffix])


@needs_engine
def test_pictures_of_hostile_names(tmp_path: Path) -> None:
    """A name that holds markup, quotes and escapes is drawn as text."""
    path = tmp_path / "graph.svg"

    assert render(hostile(), path) == str(path)
    assert "</script>" not in path.read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("pygraphviz") is None, reason="needs pygraphviz")
def test_pygraphviz_draws_where_there_is_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `graph` is enough for a picture."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert render(gan_log(), tmp_path / "graph.svg").endswith(".svg")


@pytest.mark.parametrize("suffix", [".dot", ".gv", ".txt", ".md", ".json", ".html"])
def test_files_that_need_no_engine(suffix: str, tmp_path: Path, no_engine: None) -> None:
    """Everything but a picture is written on any machine, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = render(gan_log(), tmp_path / f"report{suffix.upper()}")

    assert Path(written).stat().st_size > 500


@pytest.mark.parametrize("suffix", STARTS)
def test_without_an_engine_the_dot_is_written(suffix: str, tmp_path: Path, no_engine: None) -> None:
    """One warning says what to install, and the path that is returned exists."""
    with pytest.warns(UserWarning, match=r"install it from your system's packages, or `pip install nantrace\[graph\]`"):
        written = render(gan_log(), tmp_path / f"graph{suffix}")

    assert written == str(tmp_path / "graph.dot")
    assert Path(written).read_text(encoding="utf-8").startswith("digraph")


def test_layout_that_takes_too_long_gives_the_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout has a time limit; past it the DOT text is there to be drawn elsewhere."""
    monkeypatch.setattr(drawing, "_engines", slow_engine)
    monkeypatch.setattr(drawing, "TIME_LIMIT_S", 0.3)
    began = time.monotonic()

    with pytest.warns(UserWarning, match="took longer than"):
        written = draw("digraph {}", tmp_path / "graph.svg")

    assert written.endswith(".dot")
    assert time.monotonic() - began < 10


def test_coarser_view_after_a_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ops cannot be placed in time, the modules are drawn instead."""
    monkeypatch.setattr(drawing, "_engines", picky_engine)
    monkeypatch.setattr(drawing, "TIME_LIMIT_S", 2.0)

    assert draw("digraph {}", tmp_path / "graph.svg", coarser=lambda: "digraph coarse {}").endswith(".svg")


def test_engine_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of the engine's complaint is in the warning; nothing is raised."""
    failing = [[sys.executable, "-c", "import sys; sys.exit('no fonts here')"]]
    monkeypatch.setattr(drawing, "_engines", lambda kind: failing)

    with pytest.warns(UserWarning, match="no fonts here"):
        assert draw("digraph {}", tmp_path / "graph.png").endswith(".dot")


@pytest.mark.parametrize("name", ["report.docx", "report", "report.xyz"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    """The error names the suffix and the ones that work."""
    with pytest.raises(RenderError, match=r"is not known, use one of \.svg, \.png, .*\.html"):
        render(gan_log(), tmp_path / name)


@pytest.mark.parametrize("name", ["report.txt", "graph.svg"])
def test_folder_that_does_not_exist(name: str, tmp_path: Path, no_engine: None) -> None:
    """The error names the path and says that the folder is missing."""
    with pytest.raises(RenderError, match=r"nowhere.*does not exist"):
        render(gan_log(), tmp_path / "nowhere" / name)


@pytest.mark.parametrize("name", REPORTS)
def test_json_is_strict(name: str, tmp_path: Path) -> None:
    """No bare NaN: any JSON reader of any language accepts the file."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    path = tmp_path / "report.json"
    render(REPORTS[name](), path)
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)

    assert content["snapshot"]["step"] == REPORTS[name]().step
    assert content["diagnosis"]["cause"] == REPORTS[name]().cause.value


def test_json_spells_what_is_not_finite(tmp_path: Path) -> None:
    """NaN and infinities are strings."""
    path = tmp_path / "report.json"
    render(gan_log(), path)

    assert json.loads(path.read_text())["snapshot"]["origin"]["example"]["value"] == "-inf"


def test_json_keeps_every_field() -> None:
    """A program finds everything that was seen under its own name."""
    from nantrace.rendering.json import jsonable

    assert set(jsonable(gan_log().snapshot)) == set(Snapshot.__dataclass_fields__)


@pytest.mark.parametrize("name", ["gan_log", "t5_overflow"])
def test_markdown_golden(name: str, golden: object) -> None:
    """The Markdown of a report, as somebody last read it."""
    from nantrace.rendering.markdown import markdown

    assert callable(golden)
    golden(f"{name}.md", markdown(REPORTS[name]()))


def test_markdown_shows_markup_as_text() -> None:
    """Names cannot become links, tags, or the end of a fence."""
    from nantrace.rendering.markdown import code, escaped

    assert escaped("[a](b) <b>") == "\\[a\\](b) \\<b\\>"
    assert code("a`b") == "``a`b``"


@pytest.mark.parametrize("name", REPORTS)
def test_page_is_well_formed(name: str, tmp_path: Path) -> None:
    """Every tag that is opened is closed."""

    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.depth: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "br"):
                self.depth.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.depth.pop() == tag

    path = tmp_path / "report.html"
    render(REPORTS[name](), path)
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))

    assert not parser.depth


def test_page_needs_no_network(tmp_path: Path) -> None:
    """Nothing on the page is fetched from anywhere."""
    path = tmp_path / "report.html"
    render(sqrt_backward(), path)
    text = path.read_text(encoding="utf-8")

    assert not re.search(r"""(src|href)\s*=|url\(|@import""", text)


def test_page_escapes_names(tmp_path: Path) -> None:
    """A module called </script> is a name, not markup."""
    path = tmp_path / "report.html"
    render(hostile(), path)

    assert "</script>" not in path.read_text(encoding="utf-8")


@needs_engine
def test_page_holds_the_picture(tmp_path: Path) -> None:
    """The graph is in the page itself."""
    path = tmp_path / "report.html"
    render(gan_log(), path)

    assert path.read_text(encoding="utf-8").count("<svg") == 1


def test_page_without_an_engine(tmp_path: Path, no_engine: None) -> None:
    """The story stands alone where nothing can draw."""
    path = tmp_path / "report.html"
    render(gan_log(), path)

    assert "<svg" not in path.read_text(encoding="utf-8")
