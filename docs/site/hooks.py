"""What MkDocs is told: pages at the root of the repository are pages of the site, too.

README.md becomes the first page. Links are rewritten to where the page then is, and say its title
where they say its file; a link to a file that is no page keeps its text alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# By their paths in the repository; what they are called on the site.
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LOG.md": "log.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages at the root."""
    from mkdocs.structure.files import File

    for name, page in AT_THE_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=for_site(text, ROOT)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that lies under docs/."""
    if page.file.src_uri in AT_THE_ROOT.values():
        return markdown
    return for_site(markdown, ROOT / "docs")


def for_site(text: str, folder: Path) -> str:
    """A page of the repository with the links of the site.

    Args:
        folder: in which the page lies.
    """

    def rewritten(found: re.Match[str]) -> str:
        image, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        if words in (target, Path(target).name) and target.endswith(".md"):
            words = _title(folder / target)
        if not target or "://" in target:
            return found[0]
        path = (folder / target).resolve().relative_to(ROOT).as_posix()
        page = AT_THE_ROOT.get(path) or path.removeprefix("docs/")
        if path in AT_THE_ROOT or path.startswith("docs/"):
            return f"{image}[{words}]({page}{anchor})"
        return words

    outside = re.split(r"(^ *```.*?^ *```$)", text, flags=re.MULTILINE | re.DOTALL)
    outside[::2] = [_LINK.sub(rewritten, part) for part in outside[::2]]
    return "".join(outside)


def _title(page: Path) -> str:
    first = page.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ")
