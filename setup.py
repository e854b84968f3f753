"""The page that a package index shows: the README without its links, which lead to files of the project.

All else is in pyproject.toml. Once the project has an address, the links can begin with that instead.
"""

import re
from pathlib import Path

from setuptools import setup

LINK = r"\[([^\]]*)\]\((?![a-z]+:)[^)]*\)"
END = "The documents that this page names are in the source distribution.\n"

page = Path(__file__).with_name("README.md").read_text("utf-8")
page = re.sub(rf" \({LINK}\)|^!?{LINK}\n\n|\n\({LINK}\)", "", page, flags=re.MULTILINE)
page = re.sub(LINK, r"\1", page)
setup(long_description=f"{page}\n{END}", long_description_content_type="text/markdown")
