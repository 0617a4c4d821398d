"""What `pyproject.toml` cannot say: on the package index, README stands alone, so its links are made absolute."""

import re
import runpy
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# [text](docs/page.md), ![text](docs/picture.png); not [text](#heading) or [text](https://...)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)")


def with_absolute_links(text: str, repository: str, revision: str) -> str:
    """A page of the repository whose links to its other files lead there from anywhere."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository}/{kind}/{revision}/{link['path']})"

    return LINK.sub(absolute, text)


if __name__ == "__main__":
    source = re.search(r'^Source = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.MULTILINE)
    assert source is not None, "pyproject.toml: no Source in [project.urls]"
    version = runpy.run_path(str(ROOT / "modeling_visualbert" / "version.py"))["__version__"]
    setup(
        long_description=with_absolute_links((ROOT / "README.md").read_text("utf-8"), source[1], f"v{version}"),
        long_description_content_type="text/markdown",
    )
