"""Packages that extend Tandem: each registers what it brings when it is imported."""

from functools import cache
from importlib.metadata import entry_points

from tandem.errors import SettingsError

GROUP = "tandem"
"""Entry points of this group name modules to import."""


@cache
def load_extensions() -> None:
    """Import every installed extension; only the first call does. Raises SettingsError for a broken one."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            raise SettingsError(
                f"the extension {entry.name} of package {package} cannot be imported "
                f"({type(error).__name__}: {error}); mend or uninstall it"
            ) from error
